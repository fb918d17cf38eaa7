"""Turns rows into problems: finds the column of each field, checks the cells, and drops copies of prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import files, prepared
from jaxrlvr.data.files import BadCell, BadRow
from jaxrlvr.tasks.graph.verify import GRAPH_TASKS
from jaxrlvr.text.answer import last_box

_LOG = logging.getLogger(__name__)
# Verifier by extra.source_dataset, with the keys of extra that it reads.
VERIFIER_CHOICES = ("auto", "math", "graph", "choice")
STUDY_COLUMNS = (
  "prompt=prompt",
  "label=reward_model.ground_truth",
  "extra=extra_info?",
  "extra.data_source=data_source?",
)
TARGETS = ("prompt", "label", "boxed", "truth", "id", "extra", "trace", "solution")
# Names of columns, in any case, that `recognised` takes for prompt and label where `columns` is empty.
PROMPT_COLUMNS = ("prompt", "question", "problem", "query")
LABEL_COLUMNS = ("answer", "label", "ground_truth", "final_answer", "expected_answer")
SOLUTION_COLUMN = "solution"  # column that gives the label where none is there: its last box, or the text behind ####
_PART = re.compile(r"(.+)\[(:-1|-1)\]")  # all turns but the last of a column of messages; the text of the last one
_HASH = re.compile(r"\s*####(?!#)\s*(\S.*?)\s*")
_WITH_COPIES = ("config.problems.", "config.heldout.")  # groups with a key `copies`
_SHORT = 64  # most characters of a solution without a box that is taken as the answer itself


class ProblemsAndCounts(NamedTuple):
  """Problems of a source, and counts of its rows.

  counts["rows"] = len(problems) + the counts of rows that are left out: other, unanswered, bad, copies, conflicts.
  """

  problems: list[Problem]
  counts: Mapping[str, int]


class _Left(Exception):
  """Raised for a row that is left out without being bad; its argument is a key of `counts`."""


def load(
  path: str | pathlib.Path,
  verifier: str = "auto",
  columns: Sequence[str] = (),
  system: str = "",
  skip_bad: int = 0,
  wanted: Sequence[str] = ("prompt", "label"),
  patterns: tuple[str, ...] = (),
  split: files.Split | None = None,
  copies: str = "drop",
  key: str = "columns",
) -> ProblemsAndCounts:
  """Returns the problems in the rows of `files.read`, in its order, and counts of what became of the rows.

  verifier: "math"; "choice"; "graph", chosen by extra.source_dataset; "auto": graph where that names one, else math.
  columns: entries `TARGET=COLUMN` (see below); (): STUDY_COLUMNS where the first row has them, else by `recognised`.
  system: a system message for prompts that have none. skip_bad: how many rows that can't be used are skipped.
  wanted: targets that `columns` must have. patterns, split: as in `files.files`.
  copies: the fate of a row with the prompt of an earlier row. "drop" leaves it out and logs it (a conflict is a copy
  with another label), "keep" makes it a problem of its own, "error" raises InputError. key: config key of `columns`.

  A target is one of TARGETS, or extra.NAME. `boxed` makes the last box of a solution the label, or the whole solution
  if it is short. A column may be a path into structs or JSON text (`a.b`), have substitutes (`a|b`: the first that the
  row has) or be optional (`a?`). Of messages that end in an assistant turn, `a[:-1]` is all but that turn and `a[-1]`
  its text. `COLUMN==VALUE` leaves out rows with other values. If the last line of a label, or of a solution without a
  box, is `#### ANSWER`, that is the answer. A label that is a JSON list accepts any of its entries: the first becomes
  the label, the others extra["also"].

  Rows that `prepared.save` wrote need no columns and bring their verifiers. Raises InputError for a `verifier` besides
  "auto" with these, for wrong `columns`, for more than `skip_bad` bad rows, and where no problem is left.
  """
  if verifier not in VERIFIER_CHOICES:
    raise InputError(f"verifier of {path} is {verifier!r}; use one of {', '.join(VERIFIER_CHOICES)}")
  source, where, tops = _plan(columns, wanted) if columns else ({}, {}, ())
  counts = dict.fromkeys(("rows", "other", "unanswered", "bad", "copies", "conflicts"), 0)
  found: list[Problem] = []
  first_of: dict[str, tuple[str, Problem]] = {}  # by prompt, with its place
  owner: dict[str, str] = {}  # prompt by id
  repeats: list[str] = []
  for place, row in files.read(path, tops, patterns, split):
    counts["rows"] += 1
    try:
      if isinstance(row, BadRow):
        raise row
      if any(str(_cell(row, column)) != value for column, value in where.items()):
        raise _Left("other")
      own = not columns and all(field in row for field in prepared.FIELDS)
      if not own and not source:
        source, where, _ = _plan(_layout(place, row, key, str(path)), wanted)
      problem = _prepared(row, verifier, system) if own else _problem(row, source, verifier, system)
      _check_turns("messages" if own else source["prompt"], problem.messages, key)
      prompt = prompt_id(problem.messages)
      if owner.setdefault(problem.id, prompt) != prompt:
        raise BadCell("id", problem.id, "an id that no other prompt has")
    except _Left as left:
      counts[left.args[0]] += 1
    except BadRow as error:
      counts["bad"] += 1
      if counts["bad"] > skip_bad:
        raise InputError(f"{place}, {error}; correct or drop the row, or raise skip_bad = {skip_bad}") from None
    else:
      before, first = first_of.setdefault(prompt, (place, problem))
      if first is not problem and copies != "keep":
        counts["copies" if first.label == problem.label else "conflicts"] += 1
        repeats.append(_repeat(place, problem, before, first))
        if copies == "error":
          raise InputError(f"{path}: {repeats[0]}; correct one, or take copies=drop or keep")
        continue
      if first is not problem and problem.id in owner:
        problem = _another(problem, owner, prompt)
      found.append(problem)
  if not found:
    raise InputError(f"{path}: no row gives a problem ({counts_in_words(counts)}); correct the file or the columns")
  _tell(path, counts, repeats, key)
  return ProblemsAndCounts(found, counts)


def _another(problem: Problem, owner: dict[str, str], prompt: str) -> Problem:
  """Returns a copy of the problem with a new id, ID#2 or the first number that is free; `owner` is updated."""
  number = 2
  while f"{problem.id}#{number}" in owner:
    number += 1
  owner[f"{problem.id}#{number}"] = prompt
  return dataclasses.replace(problem, id=f"{problem.id}#{number}")


def _repeat(place: str, problem: Problem, before: str, first: Problem) -> str:
  """Returns a sentence that says which row repeats which, and how their labels differ if they do."""
  folder = before.rpartition(":")[0]
  place = place.removeprefix(f"{folder}:").strip() if folder else place
  before = before.removeprefix(f"{folder}:").strip() if folder else before
  differs = "" if problem.label == first.label else f" with the label {problem.label[:40]!r} for {first.label[:40]!r}"
  return f"{_row(place)} repeats {_row(before)}{differs}"


def _row(place: str) -> str:
  return f"line {place}" if place.isdecimal() else place


def _tell(path: str | pathlib.Path, counts: Mapping[str, int], repeats: Sequence[str], key: str) -> None:
  """Logs what became of the rows, as a warning where more is left out than `columns` says. key: as in `load`."""
  names = ("unanswered", "bad", "copies", "conflicts")
  if not any(counts[name] for name in (*names, "other")):
    return
  level = logging.WARNING if any(counts[name] for name in names) else logging.INFO
  conflicts = [one for one in repeats if " with the label " in one]
  shown = (conflicts + [one for one in repeats if one not in conflicts])[:3]
  more = f", ... ({len(repeats)} in all)" if len(repeats) > len(shown) else ""
  kept = f"; {key.removesuffix('columns')}copies=keep keeps them" if key.startswith(_WITH_COPIES) else ""
  rest = f"; left out: {', '.join(shown)}{more}{kept}" if repeats else ""
  _LOG.log(level, "%s: %s%s", path, counts_in_words(counts), rest)


def _layout(place: str, row: Mapping, key: str, path: str) -> Sequence[str]:
  """Returns STUDY_COLUMNS if the row has them, else the entries that `recognised` finds, which are logged.

  Raises InputError, with entries to try, where neither does.
  """
  if "reward_model" in row and "prompt" in row:
    return STUDY_COLUMNS
  columns = recognised(row)
  if columns is None:
    missing = "prompt" if "reward_model" in row or "prompt" not in row else "reward_model.ground_truth"
    found = ", ".join(map(str, row))[:200]
    raise InputError(
      f"{place}, column {missing} is missing, found {found}; say which columns hold prompt and label, such as "
      f'--{key}="{",".join(_guess(row))}"'
    )
  _LOG.warning('%s: read as %s="%s"', path, key, ",".join(columns))
  return columns


def default_columns(path: str | pathlib.Path, patterns: tuple[str, ...] = ()) -> Sequence[str]:
  """Returns the entries of `columns` that `load` takes for a source by default; (): its rows need none."""
  row = next(
    (row for _, row in files.read(path, patterns=patterns, split=files.Split(files.ALL)) if isinstance(row, Mapping)),
    {},
  )
  if all(field in row for field in prepared.FIELDS):
    return ()
  return STUDY_COLUMNS if "reward_model" in row and "prompt" in row else recognised(row) or ()


def recognised(row: Mapping) -> tuple[str, ...] | None:
  """Returns the entries of `columns` for a row with exactly one known prompt and one label or solution, else None."""
  names = {str(name).strip().lower(): str(name) for name in row}
  prompts, labels = ([names[name] for name in wanted if name in names] for wanted in (PROMPT_COLUMNS, LABEL_COLUMNS))
  if len(prompts) != 1 or len(labels) > 1 or (not labels and SOLUTION_COLUMN not in names):
    return None
  return f"prompt={prompts[0]}", f"label={labels[0]}" if labels else f"boxed={names[SOLUTION_COLUMN]}"


def _guess(row: Mapping) -> tuple[str, str]:
  """Returns entries of `columns` that might fit the row, for an error message."""
  names = [str(name) for name in row]
  for name in names:
    if isinstance(row[name], list) and row[name] and isinstance(row[name][-1], Mapping):
      if row[name][-1].get("role") == "assistant":
        return f"prompt={name}[:-1]", f"boxed={name}[-1]"
  known = {name.strip().lower(): name for name in reversed(names)}
  prompt = next((known[name] for name in (*PROMPT_COLUMNS, "messages") if name in known), names[0] if names else "A")
  label = next((known[name] for name in LABEL_COLUMNS if name in known and known[name] != prompt), "")
  if not label and SOLUTION_COLUMN in known:
    return f"prompt={prompt}", f"boxed={known[SOLUTION_COLUMN]}"
  return f"prompt={prompt}", f"label={label or next((name for name in reversed(names) if name != prompt), 'B')}"


def _check_turns(column: str, turns: Sequence[Mapping[str, str]], key: str) -> None:
  """Raises BadCell for a prompt that ends in an assistant turn or holds no text."""
  if turns[-1]["role"] == "assistant":
    name = column.removesuffix("?")
    raise BadCell(
      name,
      turns[-1],
      f"a last turn of the user: with --{key} prompt={name}[:-1] is the turns before, boxed={name}[-1] takes the "
      f"answer from the last one, and solution={name}[-1] is its text",
    )
  if all(not turn["content"].strip() for turn in turns):
    raise BadCell(column, list(turns), "a turn with text")


def counts_in_words(counts: Mapping[str, int]) -> str:
  """Returns the counts as text, such as `5 rows, 1 bad`; counts of 0 are left out, but for rows."""
  return ", ".join(f"{number} {name}" for name, number in counts.items() if number or name == "rows")


def prompt_id(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns the id of a prompt: 16 hexadecimal digits of a hash of its turns."""
  return hashlib.sha1("\n".join(f"{m['role']}: {m['content']}" for m in messages).encode()).hexdigest()[:16]


def _plan(columns: Sequence[str], wanted: Sequence[str]) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
  """Returns, from entries of `columns`: the column of each target, the value required by column, and columns to read.

  Raises InputError for an entry that can't be parsed or is there twice, and for a missing target of `wanted`.
  """
  sources, where = {}, {}
  for entry in columns:
    match = re.fullmatch(r"\s*([^=]+?)\s*(==?)\s*([^=\s].*?)\s*", entry, re.DOTALL)
    if not match or match[2] == "=" and match[1] not in TARGETS and not match[1].startswith("extra."):
      targets = ", ".join(TARGETS)
      raise InputError(f"columns entry {entry!r}: wanted TARGET=COLUMN ({targets} or extra.NAME), or COLUMN==VALUE")
    table = where if match[2] == "==" else sources
    if match[1] in table:
      raise InputError(f"columns entry {entry!r}: {match[1]} is there twice; name substitutes as A|B")
    table[match[1]] = match[3]
  for target in wanted:
    if target not in sources and not (target == "label" and "boxed" in sources):
      raise InputError(f"columns {', '.join(columns)}: no column for {target}; add {target}=COLUMN")
  paths = [_whole(path) for source in (*sources.values(), *where) for path in _paths(source)]
  return sources, where, tuple(dict.fromkeys(head for path in paths for head in _heads(path)))


def _paths(source: str) -> list[str]:
  return source.removesuffix("?").split("|")


def _whole(path: str) -> str:
  """Returns the path without `[:-1]` or `[-1]`."""
  return match[1] if (match := _PART.fullmatch(path)) else path


def _heads(path: str) -> list[str]:
  """Returns the column names with which a path may begin, the longest first; names may hold dots."""
  parts = path.split(".")
  return [".".join(parts[:size]) for size in range(len(parts), 0, -1)]


def _cell(row: Mapping, source: str) -> object:
  """Returns the cell of a column entry; None where it is optional and missing. Raises BadRow where it is missing."""
  paths, optional = _paths(source), source.endswith("?")
  path = next((path for path in paths if any(head in row for head in _heads(_whole(path)))), None)
  if path is None and not optional:
    raise BadRow(f"column {_whole(paths[0])} is missing, found {', '.join(map(str, row))}"[:200])
  if path is None:
    return None
  cell, part = _descend(row, _whole(path), optional), _PART.fullmatch(path)
  return _turns(path, cell, part[2]) if part and not (cell is None and optional) else cell


def _descend(row: Mapping, path: str, optional: bool) -> object:
  """Returns the cell at a path into structs; at each level the longest name that is there counts."""
  cell, rest, before = row, path, ""
  while rest:
    if before:
      if cell is None and optional:
        return None
      cell = prepared.struct(before, cell)
    head = next((head for head in _heads(rest) if head in cell), rest.partition(".")[0])
    cell, rest = cell.get(head), rest[len(head) + 1 :]
    before = f"{before}.{head}" if before else head
  return cell


def _turns(path: str, cell: object, part: str) -> object:
  """Returns the turns before the last, an assistant turn (part ":-1"), or its text, else raises BadCell."""
  turns = prepared.messages(_whole(path), cell)
  if turns[-1]["role"] != "assistant" or (part == ":-1" and len(turns) == 1):
    raise BadCell(path, list(turns), "messages that end in an assistant turn behind others")
  return list(turns[:-1]) if part == ":-1" else turns[-1]["content"]


def _prepared(row: Mapping, verifier: str, system: str) -> Problem:
  """Returns the problem of a row that `prepared.save` wrote. Raises InputError for a verifier besides "auto"."""
  problem = prepared.from_row(row)
  if verifier != "auto":
    raise InputError(
      f"verifier = {verifier!r}: the rows are those of a prepared set, which brings its verifiers (here "
      f"{problem.verifier}); leave it at auto, or prepare the set again"
    )
  return dataclasses.replace(problem, messages=_with_system(problem.messages, system))


def _problem(row: Mapping, source: Mapping[str, str], verifier: str, system: str) -> Problem:
  """Returns the problem of a row. source: the column of each target. Raises BadRow or _Left where it gives none."""
  messages = _messages(source["prompt"], _cell(row, source["prompt"]), system)
  extra = _extra(row, source)
  verifier = _verifier(extra, verifier)
  labels = _labels(row, source)
  truths = _truths(row, source, extra, verifier) or labels
  also = {first: rest for first, *rest in (labels, truths) if rest}
  return Problem(
    id=str(_scalar("id", _cell(row, source["id"]))) if "id" in source else prompt_id(messages),
    messages=messages,
    label=labels[0],
    truth=truths[0],
    verifier=verifier,
    extra=extra | ({"also": also} if also else {}),
  )


def _messages(column: str, cell: object, system: str) -> tuple[Mapping[str, str], ...]:
  if isinstance(cell, str):
    cell = [{"role": "user", "content": prepared.text(column, cell)}]
  return _with_system(prepared.messages(column, cell), system)


def _with_system(turns: tuple[Mapping[str, str], ...], system: str) -> tuple[Mapping[str, str], ...]:
  if system and all(turn["role"] != "system" for turn in turns):
    return {"role": "system", "content": system}, *turns
  return turns


def _extra(row: Mapping, source: Mapping[str, str]) -> dict:
  """Returns `extra` from the columns for extra, extra.NAME, trace and solution, without nulls."""
  whole = _cell(row, source["extra"]) if "extra" in source else None
  extra = {} if whole in (None, "") else prepared.struct(_paths(source["extra"])[0], whole)
  for target, path in source.items():
    if target.startswith("extra."):
      extra[target.removeprefix("extra.")] = _cell(row, path)
    elif target in ("trace", "solution"):
      extra[target] = prepared.text(path, _cell(row, path))
  return {key: value for key, value in extra.items() if value is not None and key != "also"}  # "also" is set by us


def _verifier(extra: Mapping, asked: str) -> str:
  """Returns the verifier of a row, as `load` says. Raises BadCell where `extra` lacks what a graph task needs."""
  task = extra.get("source_dataset")
  if asked == "graph" and task not in GRAPH_TASKS:
    raise BadCell("extra_info", task, f"a source_dataset among {', '.join(GRAPH_TASKS)}")
  if asked in ("math", "choice") or task not in GRAPH_TASKS:
    return "math" if asked == "auto" else asked
  if missing := [key for key in GRAPH_TASKS[task] if key not in extra]:
    raise BadCell("extra_info", sorted(extra), f"the key {missing[0]}, which {task} needs")
  return task


def _labels(row: Mapping, source: Mapping[str, str]) -> list[str]:
  """Returns the accepted answers of a row's label or boxed solution. Raises _Left where it has none."""
  if "label" in source:
    return _entries(source["label"], _cell(row, source["label"]))
  if "boxed" not in source:
    return [""]
  solution = _cell(row, source["boxed"])
  if solution is None and source["boxed"].endswith("?"):
    raise _Left("unanswered")
  solution = prepared.text(source["boxed"], solution).strip()
  short = "" if "\n" in solution or len(solution) > _SHORT else solution
  answer = last_box(solution) or behind_hash(solution) or short
  if not answer.strip():
    raise _Left("unanswered")
  return [answer]


def behind_hash(solution: str) -> str:
  """Returns the answer in a last line `#### ANSWER`, as GSM8K writes it; "" where the text has no such line."""
  match = _HASH.fullmatch(solution.rstrip().rpartition("\n")[2])
  return match[1] if match else ""


def _scalar(column: str, cell: object) -> str:
  """Returns a cell that is text, or a number as text, else raises BadCell."""
  number = isinstance(cell, (int, float)) and not isinstance(cell, bool) and math.isfinite(cell)
  return prepared.text(column, str(cell) if number else cell)


def _entries(column: str, cell: object) -> list[str]:
  """Returns the accepted answers: the text, or the entries of a list of texts. `[1, 2]` is text, as an interval."""
  entries = cell
  if isinstance(cell, str) and cell.lstrip().startswith("["):
    with contextlib.suppress(ValueError):
      entries = files.parse_json(cell)
  if not (isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)):
    entries = [cell]
  entries = [behind_hash(entry) or entry if isinstance(entry, str) else entry for entry in entries]
  try:
    return [_scalar(column, entry) for entry in entries] or [_scalar(column, None)]
  except BadCell:
    raise BadCell(column, cell, "a non-empty text, or a JSON list of such") from None


def _truths(row: Mapping, source: Mapping[str, str], extra: Mapping, verifier: str) -> list[str] | None:
  """Returns the right answers, where a row has them beside a label that may be wrong, else None."""
  if "truth" in source:
    return _entries(source["truth"], _cell(row, source["truth"]))
  if "original_ground_truth" in extra:
    return _entries("extra_info.original_ground_truth", extra["original_ground_truth"])
  if verifier in GRAPH_TASKS and "solution_path" in extra:
    return [" → ".join(extra["solution_path"])]
  if verifier in GRAPH_TASKS and "solution" in extra:
    return [str(extra["solution"])]
  return None
