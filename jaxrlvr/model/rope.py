"""Rotary position embedding (RoPE): the angles of each position, and the scalings that models stretch to longer texts.

A head of which d numbers are rotated has d/2 pairs. At position m, pair i turns by the angle m * frequency_i, and
frequency_i = theta^(-2i/d), which a scaling changes. SCALINGS has the scalings by the `rope_type` of transformers, to
whose `modeling_rope_utils` each is equal.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlvr.base.errors import InputError


def plain_frequencies(theta: float, rotated: int) -> jax.Array:
  """Returns the unscaled frequencies theta^(-2i/d), float32 [d/2]. rotated: d, the numbers of a head that turn."""
  return theta ** (-jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """A scaling of rotary frequencies; its classes are those of SCALINGS. Hashable, as it is part of a static `Spec`."""

  kind: str = dataclasses.field(init=False)  # the key in SCALINGS, which tells scalings apart in policy.json

  def frequencies(self, theta: float, rotated: int, max_positions: int) -> jax.Array:
    """Returns the scaled frequencies, float32 [rotated/2].

    theta: base of the frequencies. rotated: numbers of a head that turn. max_positions: `Spec.max_positions`.
    """
    raise NotImplementedError

  def amplitude(self, max_positions: int) -> float:
    """Returns what cosines and sines are multiplied by, transformers' attention_factor: 1 for most scalings."""
    return 1.0

  def for_texts_of(self, tokens: int) -> RopeScaling:
    """Returns the scaling that is computed where the longest text has this many tokens: itself for most scalings."""
    return self

  def is_exceeded(self, tokens: int, max_positions: int) -> bool:
    """Returns whether a text of so many tokens needs other angles than the texts that the scaling is computed for."""
    return False

  def check(self, theta: float, rotated: int, max_positions: int) -> None:
    """Raises InputError, naming the field, where the scaling can't be computed with these arguments of `frequencies`.

    Numbers must be positive; those that are 0 by default may be 0 too.
    """
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      may_be_0 = field.default == 0
      is_number = isinstance(value, int | float) and not isinstance(value, bool)
      if is_number and not (0 < value < math.inf or may_be_0 and value == 0):
        raise InputError(f"{self.kind}: {field.name} = {value!r}: wanted a positive number")


@dataclasses.dataclass(frozen=True)
class Llama3(RopeScaling):
  """Llama 3's scaling.

  A frequency that turns more than high_freq_factor times within the original positions stays; one that turns less than
  low_freq_factor times is divided by `factor`; between them the division sets in linearly.
  """

  kind: str = dataclasses.field(default="llama3", init=False)
  factor: float = 8.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position: int = 8192  # tokens of the longest text before the stretch

  def frequencies(self, theta: float, rotated: int, max_positions: int) -> jax.Array:
    """Returns the scaled frequencies, float32 [rotated/2]; arguments as in `RopeScaling.frequencies`."""
    frequency = plain_frequencies(theta, rotated)
    turns = self.original_max_position * frequency / (2 * jnp.pi)
    smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)
    return frequency * (smooth + (1.0 - smooth) / self.factor)

  def check(self, theta: float, rotated: int, max_positions: int) -> None:
    """Raises InputError also where high_freq_factor is not above low_freq_factor."""
    super().check(theta, rotated, max_positions)
    if self.high_freq_factor <= self.low_freq_factor:
      raise InputError(f"llama3: high_freq_factor = {self.high_freq_factor}: must be above {self.low_freq_factor}")


@dataclasses.dataclass(frozen=True)
class Linear(RopeScaling):
  """Divides all frequencies by `factor`, which has the effect of dividing positions (position interpolation)."""

  kind: str = dataclasses.field(default="linear", init=False)
  factor: float = 1.0

  def frequencies(self, theta: float, rotated: int, max_positions: int) -> jax.Array:
    """Returns the scaled frequencies, float32 [rotated/2]; arguments as in `RopeScaling.frequencies`."""
    return plain_frequencies(theta, rotated) / self.factor


@dataclasses.dataclass(frozen=True)
class Dynamic(RopeScaling):
  """Raises theta for texts longer than max_positions, the more the longer they are (dynamic NTK scaling).

  transformers takes the length of the text at hand, so that the same token turns otherwise in a longer text. Here all
  texts of a stage are rotated as its longest one, `length`, so that sampler and scorer agree however texts are packed.
  """

  kind: str = dataclasses.field(default="dynamic", init=False)
  factor: float = 1.0
  length: int = 0  # tokens of the longest text of the stage; up to max_positions nothing is scaled

  def frequencies(self, theta: float, rotated: int, max_positions: int) -> jax.Array:
    """Returns the scaled frequencies, float32 [rotated/2]; arguments as in `RopeScaling.frequencies`."""
    stretch = max(self.length, max_positions) / max_positions
    raised = theta * (self.factor * stretch - (self.factor - 1)) ** (rotated / (rotated - 2))
    return plain_frequencies(raised, rotated)

  def for_texts_of(self, tokens: int) -> RopeScaling:
    """Returns a copy whose `length` is this number of tokens."""
    return dataclasses.replace(self, length=tokens)

  def is_exceeded(self, tokens: int, max_positions: int) -> bool:
    """Returns whether a text of so many tokens is longer than both `length` and max_positions."""
    return tokens > max(self.length, max_positions)

  def check(self, theta: float, rotated: int, max_positions: int) -> None:
    """Raises InputError also where max_positions is unknown, or only one pair is rotated."""
    super().check(theta, rotated, max_positions)
    if not max_positions:
      raise InputError("dynamic: max_positions = 0: wanted the longest text that the model was trained for")
    if rotated < 4:
      raise InputError(f"dynamic: {rotated} numbers of a head are rotated: wanted at least 4")


@dataclasses.dataclass(frozen=True)
class Yarn(RopeScaling):
  """YaRN (Peng et al. 2023): keeps high frequencies, divides low ones by `factor`, and sharpens attention.

  A pair that turns more than beta_fast times within the original positions stays; one that turns less than beta_slow
  times is divided by `factor`; between them the division sets in linearly over the number of the pair. Cosines and
  sines are multiplied by attention_factor.
  """

  kind: str = dataclasses.field(default="yarn", init=False)
  factor: float = 1.0
  original_max_position: int = 2048  # tokens of the longest text before the stretch
  attention_factor: float = 0.0  # 0: m(mscale) / m(mscale_all_dim), or m(1) if one of them is 0; see `amplitude`
  mscale: float = 0.0
  mscale_all_dim: float = 0.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True  # the first and the last pair of the transition are rounded away from each other

  def frequencies(self, theta: float, rotated: int, max_positions: int) -> jax.Array:
    """Returns the scaled frequencies, float32 [rotated/2]; arguments as in `RopeScaling.frequencies`."""
    first = max(self._pair_with_turns(self.beta_fast, theta, rotated, math.floor), 0)
    last = min(self._pair_with_turns(self.beta_slow, theta, rotated, math.ceil), rotated - 1)
    if first == last:
      last += 0.001  # as transformers does: a step
    pairs = jnp.arange(rotated // 2, dtype=jnp.float32)
    divided = jnp.clip((pairs - first) / (last - first), 0.0, 1.0)
    frequency = plain_frequencies(theta, rotated)
    return frequency * (1.0 - divided) + frequency / self.factor * divided

  def amplitude(self, max_positions: int) -> float:
    """Returns attention_factor, or what stands for 0: a ratio of m(scale) = 1 + 0.1 * scale * ln(factor)."""
    if self.attention_factor:
      return self.attention_factor
    log = math.log(max(self.factor, 1.0))
    if self.mscale and self.mscale_all_dim:
      return (1 + 0.1 * self.mscale * log) / (1 + 0.1 * self.mscale_all_dim * log)
    return 1 + 0.1 * log

  def check(self, theta: float, rotated: int, max_positions: int) -> None:
    """Raises InputError also where theta is at most 1, or beta_fast below beta_slow."""
    super().check(theta, rotated, max_positions)
    if theta <= 1:
      raise InputError(f"yarn: rope_theta = {theta}: wanted more than 1")
    if self.beta_fast < self.beta_slow:
      raise InputError(f"yarn: beta_fast = {self.beta_fast}: must be at least beta_slow = {self.beta_slow}")

  def _pair_with_turns(self, turns: float, theta: float, rotated: int, rounded) -> float:
    """Returns the number of the pair that turns this often within the original positions, rounded if `truncate`."""
    frequency = turns * 2 * math.pi / self.original_max_position
    pair = -rotated * math.log(frequency) / (2 * math.log(theta))
    return rounded(pair) if self.truncate else pair


@dataclasses.dataclass(frozen=True)
class LongRope(RopeScaling):
  """LongRoPE (Ding et al. 2024), of Phi-3 and Phi-4-mini: divides each frequency by a number that was searched for it.

  There are two lists of such numbers, for texts up to the original length and for longer ones. transformers chooses by
  the text at hand. Here all texts of a stage are rotated as its longest one, `length`, so that sampler and scorer agree
  however texts are packed.
  """

  kind: str = dataclasses.field(default="longrope", init=False)
  short_factor: tuple[float, ...] = ()  # divisor of each frequency where length <= original_max_position
  long_factor: tuple[float, ...] = ()  # divisor of each frequency where it is longer
  original_max_position: int = 4096  # tokens of the longest text before the stretch
  factor: float = 0.0  # 0: max_positions / original_max_position
  attention_factor: float = 0.0  # 0: sqrt(1 + ln(factor) / ln(original_max_position)), or 1 for factors up to 1
  length: int = 0  # tokens of the longest text of the stage

  def frequencies(self, theta: float, rotated: int, max_positions: int) -> jax.Array:
    """Returns the scaled frequencies, float32 [rotated/2]; arguments as in `RopeScaling.frequencies`."""
    divisors = self.long_factor if self.length > self.original_max_position else self.short_factor
    return plain_frequencies(theta, rotated) / np.asarray(divisors, np.float32)

  def amplitude(self, max_positions: int) -> float:
    """Returns attention_factor, or what stands for 0, whatever the length."""
    if self.attention_factor:
      return self.attention_factor
    factor = self.factor or max_positions / self.original_max_position
    if factor <= 1:
      return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(self.original_max_position))

  def for_texts_of(self, tokens: int) -> RopeScaling:
    """Returns a copy whose `length` is this number of tokens."""
    return dataclasses.replace(self, length=tokens)

  def is_exceeded(self, tokens: int, max_positions: int) -> bool:
    """Returns whether a text of so many tokens needs long_factor, while short_factor is taken."""
    return tokens > self.original_max_position >= self.length

  def check(self, theta: float, rotated: int, max_positions: int) -> None:
    """Raises InputError also for lists without a number above 0 for each pair, and where nothing states the factor."""
    super().check(theta, rotated, max_positions)
    for name in ("short_factor", "long_factor"):
      divisors = getattr(self, name)
      if len(divisors) != rotated // 2 or not all(0 < divisor < math.inf for divisor in divisors):
        raise InputError(f"longrope: {name} has {len(divisors)} numbers: wanted {rotated // 2}, each above 0")
    if self.original_max_position < 2:
      raise InputError(f"longrope: original_max_position = {self.original_max_position}: wanted at least 2")
    if not self.factor and not max_positions:
      raise InputError("longrope: factor = 0 stands for max_positions / original_max_position; state one of them")


# The scalings by their `kind`, which is the `rope_type` of transformers.
SCALINGS: dict[str, type[RopeScaling]] = {
  "llama3": Llama3,
  "linear": Linear,
  "dynamic": Dynamic,
  "yarn": Yarn,
  "longrope": LongRope,
}


def cos_and_sin(
  positions: int, theta: float, rotated: int, scaling: RopeScaling | None = None, max_positions: int = 0
) -> tuple[jax.Array, jax.Array]:
  """Returns (cos, sin), each float32 [positions, rotated/2], of the rotary angles at positions 0 .. positions - 1.

  theta: base of the frequencies. rotated: numbers of a head that turn, even. scaling: changes the frequencies, and may
  multiply both arrays; None: it doesn't. max_positions: `Spec.max_positions`, which some scalings need.
  """
  if scaling is None:
    frequency = plain_frequencies(theta, rotated)
  else:
    frequency = scaling.frequencies(theta, rotated, max_positions)
  angle_Mh = jnp.arange(positions, dtype=jnp.float32)[:, None] * frequency
  cos, sin = jnp.cos(angle_Mh), jnp.sin(angle_Mh)
  amplitude = 1.0 if scaling is None else scaling.amplitude(max_positions)
  if amplitude != 1.0:
    cos, sin = cos * amplitude, sin * amplitude
  return cos, sin
