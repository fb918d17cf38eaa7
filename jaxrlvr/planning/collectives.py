"""Counts the collectives of a compiled program from the text of its HLO: how often each runs, what it sends."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Bytes that leave a chip, as a multiple of the bytes of the result, in a group of n chips. Keys: _COLLECTIVES.
_SENT = {
  "all-gather": lambda n: (n - 1) / n,
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "reduce-scatter": lambda n: n - 1,
  "all-to-all": lambda n: (n - 1) / n,
  "collective-permute": lambda n: 1,
}
# Bits of an element by the beginning of its type; the types that are not here end in their bits.
_BITS = {"pred": 8, "bf16": 16, "f8": 8, "s4": 4, "u4": 4}
_OPERATION = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(_COLLECTIVES)})(?P<start>-start)?\(")
_CALLS = re.compile(r"(?:calls|to_apply|body|branch_computations)=(%[\w.\-]+|\{[^}]*\})")


class Traffic(NamedTuple):
  """What all collectives of one kind send in one run of a program."""

  times: float  # how often a collective of this kind runs
  bytes: float  # bytes that leave one chip in all these times together


class _Run(NamedTuple):
  """A collective of a program."""

  line: str  # of HLO
  computation: str  # name of the computation that holds it
  times: float  # how often a run of the program runs it


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Returns (the lines of each computation in the HLO text, by name; the name of the entry computation)."""
  by_name: dict[str, list[str]] = {}
  entry, lines = "", []
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


def _called(line: str) -> list[str]:
  """Returns the names of the computations that an HLO line calls, in the order in which they stand there."""
  return [name for called in _CALLS.findall(line) for name in re.findall(r"%[\w.\-]+", called)]


def _trips(line: str, by_name: Mapping[str, list[str]], unknown_trips: float) -> float:
  """Returns how often a while loop runs: the compiler's count, or the one constant that its counter is compared with.

  line: the loop's HLO line. by_name: the lines of each computation. Returns `unknown_trips` where there is neither.
  """
  if known_count := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
    return int(known_count[1])
  condition = by_name[re.search(r"condition=(%[\w.\-]+)", line)[1]]
  lines = list(condition)
  for condition_line in condition:
    for name in _called(condition_line):
      lines += by_name.get(name, ())
  constants = []
  for condition_line in lines:
    if constant := re.search(r" = [su]32\[\]\S* constant\((\d+)\)", condition_line):
      constants.append(constant[1])
  comparisons = [condition_line for condition_line in lines if " compare(" in condition_line]
  counts_up = len(comparisons) == len(constants) == 1 and "direction=LT" in comparisons[0]
  return int(constants[0]) if counts_up else unknown_trips


def _runs(
  by_name: Mapping[str, list[str]], name: str, times: float, unknown_trips: float, seen_channels: set[str]
) -> Iterator[_Run]:
  """Yields every collective of a computation, and of those that it calls, in the order of the text.

  by_name: the lines of each computation. name: the computation. times: how often it runs.
  seen_channels: channels of the collectives that several fusions share and that were yielded before; it is added to.
  """
  for line in by_name.get(name, ()):
    if " while(" in line:
      body = re.search(r"body=(%[\w.\-]+)", line)[1]
      yield from _runs(by_name, body, times * _trips(line, by_name, unknown_trips), unknown_trips, set())
    elif _OPERATION.search(line):
      channel = re.search(r"channel_id=(\d+)", line)
      if "async_collective_fusion_config" in line and channel:  # one collective, a piece in each of several fusions
        if channel[1] in seen_channels:
          continue
        seen_channels.add(channel[1])
      yield _Run(line, name, times)
    elif "-done(" not in line and "-update(" not in line:
      for called in _called(line):
        yield from _runs(by_name, called, times, unknown_trips, seen_channels)


def count_traffic(text: str, chips: int, unknown_trips: float = 1) -> dict[str, Traffic]:
  """Returns what one run of a compiled program sends between chips, by kind of collective.

  text: the program's HLO, from `compiled.as_text()`. chips: number of chips that run it, which is the size of groups
  that the text leaves out. unknown_trips: how often a loop is assumed to run if its number of iterations depends on
  data. Keys of the result, where the program has such a collective: all-gather, all-reduce, reduce-scatter, all-to-all
  and collective-permute.
  """
  by_name, entry = _computations(text)
  total: defaultdict[str, Traffic] = defaultdict(lambda: Traffic(0, 0))
  for run in _runs(by_name, entry, 1, unknown_trips, set()):
    operation = _OPERATION.search(run.line)
    kind = operation["kind"]
    result_bytes = _bytes(kind, operation["type"], bool(operation["start"]))
    group = _group(run.line, chips)
    if kind == "all-reduce" and "all-reduce-scatter" in run.computation:  # fused with the slice that follows
      kind, result_bytes = "reduce-scatter", result_bytes / group
    before = total[kind]
    sent = run.times * result_bytes * _SENT[kind](group)
    total[kind] = Traffic(before.times + run.times, before.bytes + sent)
  return dict(total)
