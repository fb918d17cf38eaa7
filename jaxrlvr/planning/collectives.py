"""Collectives of a compiled program, read from the text of its HLO: how often each runs and what it sends."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Bytes that leave a chip, as a multiple of the bytes of the result, in a group of n chips.
SENT = {
  "all-gather": lambda n: (n - 1) / n,
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "reduce-scatter": lambda n: n - 1,
  "all-to-all": lambda n: (n - 1) / n,
  "collective-permute": lambda n: 1,
}
_BITS = {"pred": 8, "bf16": 16, "f8": 8, "s4": 4, "u4": 4}
_OPERATION = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(COLLECTIVES)})(?P<start>-start)?\(")
_CALLS = re.compile(r"(?:calls|to_apply|body|branch_computations)=(%[\w.\-]+|\{[^}]*\})")


class Traffic(NamedTuple):
  count: float  # type: ignore[assignment]  # times it runs; it hides the method of tuples
  bytes: float  # that leave a chip, in all these times


def computations(text: str) -> tuple[dict[str, list[str]], str]:
  """(lines of each computation by name, name of the entry)."""
  found, entry, lines = {}, "", []
  for line in text.splitlines():
    if head := re.match(r"(ENTRY )?(%[\w.\-]+) .*\{$", line):
      lines = found[head[2]] = []
      entry = head[2] if head[1] else entry
    elif line.startswith(" "):
      lines.append(line)
  return found, entry


def _bytes(kind: str, shape: str, started: bool) -> float:
  """Of the result; the tuple that a start makes holds operands, results and scalars of its own."""
  arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
  if started and kind != "all-reduce":
    arrays = [a for a in arrays if not (a[0] in ("u32", "s32") and not a[1])]
    arrays = arrays[len(arrays) // 2 :]
  bits = [_BITS.get(t) or _BITS.get(t[:2]) or int(re.sub(r"\D", "", t)) for t, _ in arrays]
  return sum(b / 8 * math.prod(int(n) for n in dims.split(",") if n) for b, (_, dims) in zip(bits, arrays, strict=True))


def _group(line: str, devices: int) -> int:
  """Chips of one group; the forms are {{0,1},{2,3}}, [groups,size]<=[...] and mesh['a'=2,'b'=4] {'b'}."""
  groups = re.search(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\] ?\{([^}]*)\})", line)
  if groups is None:
    return devices
  first, size, axes, used = groups.groups()
  if axes is None:
    return int(size) if size else len(first.split(","))
  sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes))
  return math.prod(int(part or sizes[name]) for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", used))


def _trips(line: str, found: dict[str, list[str]], unknown: float) -> float:
  """How often a while loop runs: as the compiler tells, or up to the one constant that its counter is compared with."""
  if told := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
    return int(told[1])
  condition = re.search(r"condition=(%[\w.\-]+)", line)[1]
  lines = list(found[condition])
  for inner in found[condition]:
    lines += [x for name in _CALLS.findall(inner) for x in found.get(name, ())]
  constants = [m[1] for x in lines if (m := re.search(r" = [su]32\[\]\S* constant\((\d+)\)", x))]
  compared = [x for x in lines if " compare(" in x]
  plain = len(compared) == len(constants) == 1 and "direction=LT" in compared[0]
  return int(constants[0]) if plain else unknown


def collectives(text: str, devices: int, unknown: float = 1) -> dict[str, Traffic]:
  """What a run of the program sends, by kind; loops that depend on data are taken to run `unknown` times."""
  found, entry = computations(text)
  total = defaultdict(lambda: Traffic(0, 0))

  def walk(name: str, times: float, seen: set[str]) -> None:
    for line in found.get(name, ()):
      if " while(" in line:
        body = re.search(r"body=(%[\w.\-]+)", line)[1]
        walk(body, times * _trips(line, found, unknown), set())
      elif operation := _OPERATION.search(line):
        channel = re.search(r"channel_id=(\d+)", line)
        if "async_collective_fusion_config" in line and channel:  # one collective, a piece in each of several fusions
          if channel[1] in seen:
            continue
          seen.add(channel[1])
        kind, size = operation["kind"], _bytes(operation["kind"], operation["type"], bool(operation["start"]))
        n = _group(line, devices)
        if kind == "all-reduce" and "all-reduce-scatter" in name:  # fused with the slice that follows
          kind, size = "reduce-scatter", size / n
        before = total[kind]
        total[kind] = Traffic(before.count + times, before.bytes + times * size * SENT[kind](n))
      elif "-done(" not in line and "-update(" not in line:
        for called in _CALLS.findall(line):
          for inner in re.findall(r"%[\w.\-]+", called):
            walk(inner, times, seen)

  walk(entry, 1, set())
  return dict(total)
