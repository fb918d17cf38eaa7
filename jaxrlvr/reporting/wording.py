"""Writes numbers and lists as the report shows them."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str]) -> str:
  """Returns the names, at least one, as "a, b and c"; a single name as it is. IndexError without a name."""
  if len(names) == 1:
    return names[0]
  return ", ".join(names[:-1]) + " and " + names[-1]


def percent(value: float | None) -> str:
  """Returns a share from 0 to 1 in percent with one decimal, without the sign %: 0.5 is "50.0"; "–" for None."""
  if value is None:
    return "–"
  return f"{100 * value:.1f}".replace("-", "−")


def points(value: float | None) -> str:
  """Returns a difference of shares in percentage points, with sign and one decimal: 0.05 is "+5.0"; "–" for None."""
  if value is None:
    return "–"
  return f"{100 * value:+.1f}".replace("-", "−")


def three_digits(value: float | None) -> str:
  """Returns a number with three significant digits, or with two decimals where it is smaller than 1; "–" for None."""
  if value is None:
    return "–"
  return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}"


def whole(value: float | None) -> str:
  """Returns a number rounded to a whole one, without decimals: 2.7 is "3"; "–" for None."""
  if value is None:
    return "–"
  return f"{value:.0f}"
