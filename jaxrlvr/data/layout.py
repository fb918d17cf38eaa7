"""From rows to problems: which column holds what (by default as the study and verl lay it out), and what is dropped."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxrlvr.data import rows, store
from jaxrlvr.data.rows import BadCell, BadRow
from jaxrlvr.text.answer import last_box
from jaxrlvr.types import InputError, Problem

# Verifier by extra.source_dataset, with the keys of extra that it reads.
GRAPH = {
  "largest_island": (),
  "quantum_lock": ("buttons", "initial_state", "initial_value", "target_value"),
}
VERIFIERS = ("auto", "math", "graph", "choice")
STUDY = ("prompt=prompt", "label=reward_model.ground_truth", "extra=extra_info?", "extra.data_source=data_source?")
TARGETS = ("prompt", "label", "boxed", "truth", "id", "extra", "trace", "solution")
_SHORT = 64  # characters of a solution without a box that is an answer as it stands


class Loaded(NamedTuple):
  """What a source holds. `counts`: rows = len(problems) + other + unanswered + bad + copies + conflicts."""

  problems: list[Problem]
  counts: Mapping[str, int]


class _Left(Exception):
  """A row left out for a reason that is no fault of it: the key of `counts`."""


def load(
  path: str | pathlib.Path,
  verifier: str = "auto",
  columns: Sequence[str] = (),
  system: str = "",
  skip_bad: int = 0,
  wanted: Sequence[str] = ("prompt", "label"),
  patterns: tuple[str, ...] = (),
) -> Loaded:
  """The problems of whatever `rows.read` reads, in its order, and what became of every row.

  `verifier`: "math"; "choice"; "graph", by extra.source_dataset; or "auto": graph where that names one, else math.
  `columns`: entries `TARGET=COLUMN`, (): STUDY. A target is one of TARGETS or extra.NAME; `boxed` takes as the label
  the last box of a solution, or the whole of it if short. A column may be a path into structs or JSON text (`a.b`),
  have substitutes (`a|b`: the first that a row has), or be optional (`a?`). `COLUMN==VALUE` leaves out the other rows.
  Rows written by `store.save` need none of this. `system`: a system message for prompts without one. Of rows with one
  prompt the first counts: the others are copies, or conflicts where the label differs. More than `skip_bad` rows that
  can't be used are an error. A label that is a JSON list counts as any of its entries: the first is the label, the
  rest `extra["also"]`. `wanted`: targets that `columns` must have. `patterns`: see `rows.files`.
  """
  if verifier not in VERIFIERS:
    raise InputError(f"verifier of {path} is {verifier!r}; use one of {', '.join(VERIFIERS)}")
  source, where, tops = _plan(columns or STUDY, wanted)
  counts = dict.fromkeys(("rows", "other", "unanswered", "bad", "copies", "conflicts"), 0)
  found: dict[str, Problem] = {}  # by prompt
  owner: dict[str, str] = {}  # prompt by id
  for place, row in rows.read(path, tops if columns else (), patterns):
    counts["rows"] += 1
    try:
      if isinstance(row, BadRow):
        raise row
      if any(str(_cell(row, column)) != value for column, value in where.items()):
        raise _Left("other")
      own = not columns and all(field in row for field in store.FIELDS)
      problem = store.from_row(row) if own else _problem(row, source, verifier, system)
      prompt = digest(problem.messages)
      if owner.setdefault(problem.id, prompt) != prompt:
        raise BadCell("id", problem.id, "an id that no other prompt has")
    except _Left as left:
      counts[left.args[0]] += 1
    except BadRow as error:
      counts["bad"] += 1
      if counts["bad"] > skip_bad:
        raise InputError(f"{place}, {error}; correct or drop the row, or raise skip_bad = {skip_bad}") from None
    else:
      first = found.setdefault(prompt, problem)
      if first is not problem:
        counts["copies" if first.label == problem.label else "conflicts"] += 1
  if not found:
    raise InputError(f"{path}: no row gives a problem ({told(counts)}); correct the file or the columns")
  return Loaded(list(found.values()), counts)


def told(counts: Mapping[str, int]) -> str:
  """Counts in words."""
  return ", ".join(f"{number} {name}" for name, number in counts.items() if number or name == "rows")


def digest(messages: Sequence[Mapping[str, str]]) -> str:
  """The id of a prompt."""
  return hashlib.sha1("\n".join(f"{m['role']}: {m['content']}" for m in messages).encode()).hexdigest()[:16]


def _plan(columns: Sequence[str], wanted: Sequence[str]) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
  """(source of each target, value that a row must have by column, top-level columns to read)."""
  sources, where = {}, {}
  for entry in columns:
    match = re.fullmatch(r"([^=]+?)(==?)([^=].*)", entry)
    if not match or match[2] == "=" and match[1] not in TARGETS and not match[1].startswith("extra."):
      targets = ", ".join(TARGETS)
      raise InputError(f"columns entry {entry!r}: wanted TARGET=COLUMN ({targets} or extra.NAME), or COLUMN==VALUE")
    (where if match[2] == "==" else sources)[match[1]] = match[3]
  for target in wanted:
    if target not in sources and not (target == "label" and "boxed" in sources):
      raise InputError(f"columns {', '.join(columns)}: no column for {target}; add {target}=COLUMN")
  paths = [path for source in (*sources.values(), *where) for path in _paths(source)]
  return sources, where, tuple(part for path in paths for part in (path, path.partition(".")[0]))


def _paths(source: str) -> list[str]:
  return source.removesuffix("?").split("|")


def _cell(row: Mapping, source: str) -> object:
  """The cell at a path; None where that is optional and not there."""
  paths, optional = _paths(source), source.endswith("?")
  path = next((path for path in paths if path in row or path.partition(".")[0] in row), None)
  if path is None and not optional:
    raise BadRow(f"column {paths[0]} is missing, found {', '.join(map(str, row))}"[:200])
  if path is None or path in row:
    return row.get(path)
  name, *rest = path.split(".")
  cell = row[name]
  for part in rest:
    if cell is None and optional:
      return None
    name, cell = f"{name}.{part}", store.struct(name, cell).get(part)
  return cell


def _problem(row: Mapping, source: Mapping[str, str], verifier: str, system: str) -> Problem:
  messages = _messages(source["prompt"], _cell(row, source["prompt"]), system)
  extra = _extra(row, source)
  verifier = _verifier(extra, verifier)
  labels = _labels(row, source)
  truths = _truths(row, source, extra, verifier) or labels
  also = {first: rest for first, *rest in (labels, truths) if rest}
  return Problem(
    id=str(_scalar("id", _cell(row, source["id"]))) if "id" in source else digest(messages),
    messages=messages,
    label=labels[0],
    truth=truths[0],
    verifier=verifier,
    extra=extra | ({"also": also} if also else {}),
  )


def _messages(column: str, cell: object, system: str) -> tuple[Mapping[str, str], ...]:
  if isinstance(cell, str):
    cell = [{"role": "user", "content": store.text(column, cell)}]
  turns = store.messages(column, cell)
  if system and all(turn["role"] != "system" for turn in turns):
    return {"role": "system", "content": system}, *turns
  return turns


def _extra(row: Mapping, source: Mapping[str, str]) -> dict:
  """What is not null of the columns for `extra`, `extra.NAME`, `trace` and `solution`."""
  whole = _cell(row, source["extra"]) if "extra" in source else None
  extra = {} if whole in (None, "") else store.struct(_paths(source["extra"])[0], whole)
  for target, path in source.items():
    if target.startswith("extra."):
      extra[target.removeprefix("extra.")] = _cell(row, path)
    elif target in ("trace", "solution"):
      extra[target] = store.text(path, _cell(row, path))
  return {key: value for key, value in extra.items() if value is not None and key != "also"}  # ours to write


def _verifier(extra: Mapping, asked: str) -> str:
  task = extra.get("source_dataset")
  if asked == "graph" and task not in GRAPH:
    raise BadCell("extra_info", task, f"a source_dataset among {', '.join(GRAPH)}")
  if asked in ("math", "choice") or task not in GRAPH:
    return "math" if asked == "auto" else asked
  if missing := [key for key in GRAPH[task] if key not in extra]:
    raise BadCell("extra_info", sorted(extra), f"the key {missing[0]}, which {task} needs")
  return task


def _labels(row: Mapping, source: Mapping[str, str]) -> list[str]:
  if "label" in source:
    return _entries(source["label"], _cell(row, source["label"]))
  if "boxed" not in source:
    return [""]
  solution = _cell(row, source["boxed"])
  if solution is None and source["boxed"].endswith("?"):
    raise _Left("unanswered")
  solution = store.text(source["boxed"], solution).strip()
  answer = last_box(solution) or ("" if "\n" in solution or len(solution) > _SHORT else solution)
  if not answer.strip():
    raise _Left("unanswered")
  return [answer]


def _scalar(column: str, cell: object) -> str:
  """A text, or a number as text."""
  number = isinstance(cell, (int, float)) and not isinstance(cell, bool) and cell == cell
  return store.text(column, str(cell) if number else cell)


def _entries(column: str, cell: object) -> list[str]:
  """The accepted answers: the text, or the entries of a list of texts; `[1, 2]` is text, maybe an interval."""
  entries = cell
  if isinstance(cell, str) and cell.lstrip().startswith("["):
    with contextlib.suppress(ValueError):
      entries = rows.parse(cell)
  if not (isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)):
    entries = [cell]
  try:
    return [_scalar(column, entry) for entry in entries] or [_scalar(column, None)]
  except BadCell:
    raise BadCell(column, cell, "a non-empty text, or a JSON list of such") from None


def _truths(row: Mapping, source: Mapping[str, str], extra: Mapping, verifier: str) -> list[str] | None:
  """The right answers where a row keeps them beside a label that may be wrong."""
  if "truth" in source:
    return _entries(source["truth"], _cell(row, source["truth"]))
  if "original_ground_truth" in extra:
    return _entries("extra_info.original_ground_truth", extra["original_ground_truth"])
  if verifier in GRAPH and "solution_path" in extra:
    return [" → ".join(extra["solution_path"])]
  if verifier in GRAPH and "solution" in extra:
    return [str(extra["solution"])]
  return None
