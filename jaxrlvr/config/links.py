"""Checks of the links of `config.chain`, which the stages `chain` and `grid` run."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from ml_collections import ConfigDict

from jaxrlvr.base.errors import InputError

# What a chain or a grid itself writes beside the directories of its links.
_OWN_NAMES = ("links", "compiled")
# What each entry of a link may be.
_LINK: Mapping[str, type] = {
  "name": object,  # see _check_places
  **dict.fromkeys(("stage", "init", "tokenizer"), str),
  **dict.fromkeys(("set", "files", "runs", "cell"), Mapping),
}


def check_link(link: Mapping) -> None:
  """Raises InputError where a link holds what no link may, or would write outside of a directory of its own."""
  _check_entries(link)
  _check_places(link)


def _check_entries(link: Mapping) -> None:
  for entry, value in link.items():
    if entry not in _LINK:
      raise InputError(f"config.chain: link {repr(dict(link))[:200]} has {entry!r}; a link has {', '.join(_LINK)}")
    if not isinstance(value, _LINK[entry]):
      kind = "a text" if _LINK[entry] is str else "a table {key: value}"
      raise InputError(f"config.chain: link {link.get('name')!r}: {entry} = {repr(value)[:200]}: wanted {kind}")
    if entry in ("files", "runs") and not all(isinstance(path, str) for path in link[entry].values()):
      raise InputError(f"config.chain: link {link.get('name')!r}: {entry}: wanted paths, each a text")


def _check_places(link: Mapping) -> None:
  if "name" not in link:
    return  # links that are run are refused without it
  name = link["name"]
  plain = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) and len(name.encode()) <= 100
  if not plain:
    raise InputError(
      f"config.chain: link name {name!r}: wanted letters, digits, '_', '-' and '.', at most 100 bytes of them: it "
      "names its directory"
    )
  if name in _OWN_NAMES or name.endswith((".json", ".txt")):
    raise InputError(f"config.chain: link name {name!r}: is a name that the chain uses itself; choose another")
  named = [link.get("init"), link.get("tokenizer")]
  for group in ("files", "runs"):
    named += dict(link.get(group, {})).values()
  for place in named:
    if place and (not isinstance(place, str) or ".." in place.split("/") or place.startswith("/")):
      raise InputError(f"config.chain: link {name!r}: names {place!r}; wanted a path below an earlier link")


def check_heeded(config: ConfigDict, overridden: Collection[str]) -> None:
  """Raises InputError where an override would change nothing, as all links set that key themselves.

  All means all links of the stages of which any link sets it. That a link has no stage is said where links are run.
  """
  sets = [(link["stage"], link.get("set", {})) for link in config.chain if "stage" in link]
  for key in overridden:
    stages = {stage for stage, own in sets if key in own}
    if stages and all(key in own for stage, own in sets if stage in stages):
      raise InputError(
        f"config.{key}: would change nothing, for each link of {', '.join(sorted(stages))} in config.chain sets its "
        "own (the config file has them, perhaps by its argument); leave it out, or change it there"
      )
