"""TPU slices by name: how many chips each has, how they are laid out, and the published figures of a chip."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

from jaxrlvr.base.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
  flops: float  # bfloat16 peak a second
  bandwidth: float  # bytes a second from HBM
  ici: float  # bytes a second out of a chip over all its links (inter-chip interconnect)
  hbm: float  # bytes that libtpu's compiler hands out: published capacity less what the runtime keeps
  cores: int  # TensorCores a chip that gcloud's names count; 1: they count chips
  dimensions: int  # of the grid of chips


GIB = 2**30
# Google Cloud documentation, "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (system architecture): peak compute, HBM
# bandwidth, interchip interconnect bandwidth (Gbps / 8). `hbm` as libtpu 0.0.52 tells when it runs out.
CHIPS = {
  "v4": Chip(275e12, 1228e9, 300e9, 30.75 * GIB, 2, 3),
  "v5e": Chip(197e12, 819e9, 200e9, 15.75 * GIB, 1, 2),
  "v5p": Chip(459e12, 2765e9, 600e9, 95.73 * GIB, 2, 3),
  "v6e": Chip(918e12, 1640e9, 448e9, 31.24 * GIB, 1, 2),
}
# Grids of chips that Cloud TPU sells, by dimensions.
GRIDS = {
  2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
  3: (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x12", "8x8x16", "8x16x16"),
    *("16x16x16", "16x16x24"),
  ),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  name: str  # as the config names it
  kind: str  # key of CHIPS
  grid: str  # such as 2x4

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]

  @property
  def chips(self) -> int:
    return math.prod(map(int, self.grid.split("x")))

  @property
  def topology(self) -> str:
    """libtpu's name of it."""
    return f"{self.kind}:{self.grid}"


def slices() -> dict[str, Slice]:
  """Every slice by the name gcloud has for it: v5p and v4 count TensorCores, two a chip, the others chips."""
  found = {}
  for kind, chip in CHIPS.items():
    for grid in GRIDS[chip.dimensions]:
      name = f"{kind}-{math.prod(map(int, grid.split('x'))) * chip.cores}"
      found[name] = Slice(name, kind, grid)
  return found


def find_slice(name: str) -> Slice:
  """Slice of a gcloud name (v5e-8, v5litepod-8, v5p-16) or of libtpu's own (v5e:2x4)."""
  known = slices()
  plain = name.lower().replace("v5litepod", "v5e")
  if plain in known:
    return dataclasses.replace(known[plain], name=name)
  kind, _, grid = plain.partition(":")
  if kind in CHIPS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", grid):
    if grid.count("x") + 1 == CHIPS[kind].dimensions:
      return Slice(name, kind, grid)
    raise InputError(f"{name!r}: {kind} chips lie in {CHIPS[kind].dimensions} dimensions; such as {_near(kind, known)}")
  kind = plain.split("-")[0]
  near = _near(kind, known) if kind in CHIPS else ", ".join(difflib.get_close_matches(plain, known, 4) or known)
  raise InputError(f"{name!r} is no TPU slice; wanted a name as {near}, or chips in a grid as v5e:2x4")


def _near(kind: str, known: dict[str, Slice]) -> str:
  return ", ".join(n for n, s in known.items() if s.kind == kind)


def larger(kind: str, chips: int) -> str:
  """Name of the smallest slice of this kind with at least so many chips, "" if there is none."""
  return next((name for name, s in slices().items() if s.kind == kind and s.chips >= chips), "")
