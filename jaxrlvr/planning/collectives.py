"""Counts the collectives of a compiled program from the text of its HLO: how often each runs and what it sends."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Bytes that leave a chip, as a multiple of the bytes of the result, in a group of n chips. Keys: COLLECTIVES.
SENT = {
  "all-gather": lambda n: (n - 1) / n,
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "reduce-scatter": lambda n: n - 1,
  "all-to-all": lambda n: (n - 1) / n,
  "collective-permute": lambda n: 1,
}
# Bits of an element by the beginning of its type; the types that are not here end in their bits.
_BITS = {"pred": 8, "bf16": 16, "f8": 8, "s4": 4, "u4": 4}
_OPERATION = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(COLLECTIVES)})(?P<start>-start)?\(")
_CALLS = re.compile(r"(?:calls|to_apply|body|branch_computations)=(%[\w.\-]+|\{[^}]*\})")


class Traffic(NamedTuple):
  """What collectives of one kind send in a run of a program."""

  count: float  # type: ignore[assignment]  # times they run; hides the method of tuples
  bytes: float  # bytes that leave a chip in all these times


def computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Returns the lines of each computation in the HLO text, by name, and the name of the entry computation."""
  by_name, entry, lines = {}, "", []
  for line in text.splitlines():
    if head := re.match(r"(ENTRY )?(%[\w.\-]+) .*\{$", line):
      is_entry, name = head.groups()
      lines = by_name[name] = []
      if is_entry:
        entry = name
    elif line.startswith(" "):
      lines.append(line)
  return by_name, entry


def _bytes(kind: str, shape: str, started: bool) -> float:
  """Returns the bytes of a collective's result, from the HLO text of its type.

  started: the operation is a start, whose type is a tuple of operands, results and scalars (but for an all-reduce).
  """
  arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
  if started and kind != "all-reduce":
    without_scalars = [(dtype, dims) for dtype, dims in arrays if dims or dtype not in ("u32", "s32")]
    arrays = without_scalars[len(without_scalars) // 2 :]  # operands come first
  total = 0
  for dtype, dims in arrays:
    bits = _BITS.get(dtype) or _BITS.get(dtype[:2]) or int(re.sub(r"\D", "", dtype))
    total += bits / 8 * math.prod(int(size) for size in dims.split(",") if size)
  return total


def _group(line: str, devices: int) -> int:
  """Returns the number of chips in a collective's group; all `devices` where its line names no groups.

  Groups are written as {{0,1},{2,3}}, [groups,size]<=[...] or mesh['a'=2,'b'=4] {'b'}.
  """
  groups = re.search(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\] ?\{([^}]*)\})", line)
  if groups is None:
    return devices
  first, size, axes, used = groups.groups()
  if axes is None:
    return int(size) if size else len(first.split(","))
  sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes))
  return math.prod(int(part or sizes[name]) for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", used))


def _trips(line: str, by_name: dict[str, list[str]], unknown: float) -> float:
  """Returns how often a while loop runs: the compiler's count, or the one constant that its counter is compared with.

  line: the loop's HLO line. by_name: as in `computations`. Returns `unknown` where the line tells neither.
  """
  if known_count := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
    return int(known_count[1])
  condition = by_name[re.search(r"condition=(%[\w.\-]+)", line)[1]]
  lines = list(condition)
  for condition_line in condition:
    for called in _CALLS.findall(condition_line):
      lines += by_name.get(called, ())
  constants = []
  for condition_line in lines:
    if constant := re.search(r" = [su]32\[\]\S* constant\((\d+)\)", condition_line):
      constants.append(constant[1])
  comparisons = [condition_line for condition_line in lines if " compare(" in condition_line]
  counts_up = len(comparisons) == len(constants) == 1 and "direction=LT" in comparisons[0]
  return int(constants[0]) if counts_up else unknown


def collectives(text: str, devices: int, unknown: float = 1) -> dict[str, Traffic]:
  """Returns what a run of the program sends, by kind of collective.

  text: the HLO of the compiled program. devices: number of chips. unknown: how often to count a loop whose number of
  iterations depends on data.
  """
  by_name, entry = computations(text)
  total = defaultdict(lambda: Traffic(0, 0))

  def walk(name: str, times: float, seen_channels: set[str]) -> None:
    for line in by_name.get(name, ()):
      if " while(" in line:
        body = re.search(r"body=(%[\w.\-]+)", line)[1]
        walk(body, times * _trips(line, by_name, unknown), set())
      elif operation := _OPERATION.search(line):
        channel = re.search(r"channel_id=(\d+)", line)
        if "async_collective_fusion_config" in line and channel:  # one collective, a piece in each of several fusions
          if channel[1] in seen_channels:
            continue
          seen_channels.add(channel[1])
        kind = operation["kind"]
        size = _bytes(kind, operation["type"], bool(operation["start"]))
        chips = _group(line, devices)
        if kind == "all-reduce" and "all-reduce-scatter" in name:  # fused with the slice that follows
          kind, size = "reduce-scatter", size / chips
        before = total[kind]
        total[kind] = Traffic(before.count + times, before.bytes + times * size * SENT[kind](chips))
      elif "-done(" not in line and "-update(" not in line:
        for called in _CALLS.findall(line):
          for inner in re.findall(r"%[\w.\-]+", called):
            walk(inner, times, seen_channels)

  walk(entry, 1, set())
  return dict(total)
