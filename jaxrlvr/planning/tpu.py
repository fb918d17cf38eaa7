"""TPU slices by name: number and grid of their chips, and the published figures of a chip."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

from jaxrlvr.base.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a TPU chip can do, as published."""

  flops: float  # peak bfloat16 FLOPs a second
  bandwidth: float  # bytes a second from HBM
  ici: float  # bytes a second out of a chip over all its links (inter-chip interconnect)
  hbm: float  # bytes that a program may use: the published capacity less what the runtime reserves
  cores: int  # how much a chip adds to the number in gcloud's names: 2 if they count TensorCores, 1 if they count chips
  dimensions: int  # of the grid in which chips are connected: 2 or 3


GIB = 2**30
# Google Cloud documentation, "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (system architecture): peak compute, HBM
# bandwidth, interchip interconnect bandwidth (Gbps / 8). `hbm` is the limit that libtpu 0.0.52 names.
CHIPS = {
  "v4": Chip(275e12, 1228e9, 300e9, 30.75 * GIB, 2, 3),
  "v5e": Chip(197e12, 819e9, 200e9, 15.75 * GIB, 1, 2),
  "v5p": Chip(459e12, 2765e9, 600e9, 95.73 * GIB, 2, 3),
  "v6e": Chip(918e12, 1640e9, 448e9, 31.24 * GIB, 1, 2),
}
# Grids of chips that Cloud TPU offers, by number of dimensions.
GRIDS = {
  2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
  3: (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x12", "8x8x16", "8x16x16"),
    *("16x16x16", "16x16x24"),
  ),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A TPU slice: chips of one kind, connected in a grid."""

  name: str  # as it was looked up, by gcloud's or libtpu's name
  kind: str  # of chip: v4, v5e, v5p or v6e
  grid: str  # chips along each dimension, as "2x4"

  @property
  def chip(self) -> Chip:
    """Figures of one of its chips."""
    return CHIPS[self.kind]

  @property
  def chips(self) -> int:
    """Number of its chips."""
    return math.prod(map(int, self.grid.split("x")))

  @property
  def topology(self) -> str:
    """Name of the slice in libtpu, such as v5e:2x4."""
    return f"{self.kind}:{self.grid}"


def _slices() -> dict[str, Slice]:
  """Returns every slice of GRIDS by its gcloud name, smaller slices of a kind first."""
  by_name = {}
  for kind, chip in CHIPS.items():
    for grid in GRIDS[chip.dimensions]:
      chips = math.prod(map(int, grid.split("x")))
      name = f"{kind}-{chips * chip.cores}"
      by_name[name] = Slice(name, kind, grid)
  return by_name


def find_slice(name: str) -> Slice:
  """Returns the slice with this name, by which gcloud (v5e-8, v5litepod-8) or libtpu (v5e:2x4) knows it.

  gcloud's number counts TensorCores for v4 and v5p, two a chip, and chips for v5e and v6e. libtpu's name may have any
  grid with the right number of dimensions, also one that Cloud TPU does not offer. Raises InputError, which lists
  names, for any other name.
  """
  known = _slices()
  plain = name.lower().replace("v5litepod", "v5e")
  if plain in known:
    return dataclasses.replace(known[plain], name=name)
  kind, _, grid = plain.partition(":")
  if kind in CHIPS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", grid):
    if grid.count("x") + 1 == CHIPS[kind].dimensions:
      return Slice(name, kind, grid)
    raise InputError(
      f"{name!r}: {kind} chips lie in {CHIPS[kind].dimensions} dimensions; such as {_names_of(kind, known)}"
    )
  kind = plain.split("-")[0]
  if kind in CHIPS:
    similar = _names_of(kind, known)
  else:
    similar = ", ".join(difflib.get_close_matches(plain, known, 4) or known)
  raise InputError(f"{name!r} is no TPU slice; wanted a name as {similar}, or chips in a grid as v5e:2x4")


def _names_of(kind: str, known: dict[str, Slice]) -> str:
  """Returns the names of all slices of this kind of chip."""
  return ", ".join(name for name, tpu_slice in known.items() if tpu_slice.kind == kind)


def smallest_with(kind: str, chips: int) -> str:
  """Returns the gcloud name of the smallest slice with at least `chips` chips of a kind (v4, v5e, v5p or v6e).

  Returns "" where there is none: no slice has so many, or the kind is unknown.
  """
  for name, tpu_slice in _slices().items():
    if tpu_slice.kind == kind and tpu_slice.chips >= chips:
      return name
  return ""
