"""Writes numbers and lists as the report shows them."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str]) -> str:
  """Returns names joined as "a, b and c"; a single name as it is. IndexError without a name."""
  if len(names) == 1:
    return names[0]
  return ", ".join(names[:-1]) + " and " + names[-1]


def percent(value: float | None) -> str:
  """Returns a share as a text in percent without the sign %: "50.0" for 0.5, "−2.5" for -0.025, "–" for None."""
  if value is None:
    return "–"
  return f"{100 * value:.1f}".replace("-", "−")


def points(value: float | None) -> str:
  """Returns a difference of shares as a text in percentage points with its sign: "+5.0" for 0.05; "–" for None."""
  if value is None:
    return "–"
  return f"{100 * value:+.1f}".replace("-", "−")


def three_digits(value: float | None) -> str:
  """Returns a number as a text with three significant digits, or two decimals below 1: "12.3", "0.05"; "–" for None."""
  if value is None:
    return "–"
  return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}"


def whole(value: float | None) -> str:
  """Returns a number as a text without decimals, rounded: "3" for 2.7; "–" for None."""
  if value is None:
    return "–"
  return f"{value:.0f}"
