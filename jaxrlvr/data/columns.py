"""Turns rows into problems: finds the column of each field, checks the cells, and drops copies of prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import EVERY, Problem
from jaxrlvr.data import files, prepared
from jaxrlvr.data.files import BadCell, BadRow
from jaxrlvr.tasks.graph.verify import GRAPH_TASKS
from jaxrlvr.text.answer import last_box

_LOG = logging.getLogger(__name__)
VERIFIER_CHOICES = ("auto", "math", "graph", "choice")
STUDY_COLUMNS = (
  "prompt=prompt",
  "label=reward_model.ground_truth",
  "extra=extra_info?",
  "extra.data_source=data_source?",
)
_TARGETS = ("prompt", "label", "boxed", "truth", "id", "extra", "trace", "solution")
# Names of columns, in any case, that `_recognised` takes for prompt and label where `columns` is empty.
_PROMPT_COLUMNS = ("prompt", "question", "problem", "query")
_MESSAGES_COLUMN = "messages"  # column that holds the prompt where none of these does, and perhaps the answer
_LABEL_COLUMNS = ("answer", "label", "ground_truth", "final_answer", "expected_answer")
_SHORT_ANSWER_COLUMN = "short_answer"  # column that is the label where a set of tfds has it beside a whole `answer`
_SOLUTION_COLUMN = "solution"  # column that gives the label where none is there: its last box, or the text behind ####
_ENTRY = re.compile(r"\s*([^=]+?)\s*(==?)\s*([^=\s].*?)\s*", re.DOTALL)  # TARGET=COLUMN or COLUMN==VALUE
_PART = re.compile(r"(.+)\[(:-1|-1)\]")  # COLUMN[:-1], all messages but the last; COLUMN[-1], the text of the last one
_HASH_LINE = re.compile(r"\s*####(?!#)\s*(\S.*?)\s*")
_GROUPS_WITH_COPIES = ("config.problems.", "config.heldout.")  # groups of the config with a key `copies`
_ANSWERS = "a non-empty text, or a JSON list of such"  # what a label's cell must be
_SHORT = 64  # most characters of a solution without a box that is taken as the answer itself
_REPEATS_SHOWN = 3  # rows with the prompt of another row that the log names at most


class ProblemsAndCounts(NamedTuple):
  """Problems of a source, and how many of its rows gave none.

  Keys of `counts`, whose values are numbers of rows:
    rows: all of them, that is len(problems) and those left out under the keys below
    other: a value of a `COLUMN==VALUE` entry differs
    unanswered: the solution for `boxed` holds no answer, or an optional one is missing
    bad: a cell is missing or can't be used
    copies: the prompt and the label are those of an earlier row
    conflicts: the prompt is that of an earlier row, the label is not
  """

  problems: list[Problem]
  counts: Mapping[str, int]


class Derived(NamedTuple):
  """Entries of `Problem.extra` that are computed from cells of a problem's row."""

  columns: tuple[str, ...]  # of the cells, each a COLUMN as `load` takes it
  compute: Callable[[Sequence[object]], Mapping[str, Any]]  # from the cells, in order; may raise BadRow


class _LeftOut(Exception):
  """Raised for a row that is left out without being bad. count: the key of `ProblemsAndCounts.counts` for it."""

  def __init__(self, count: str):
    super().__init__(count)
    self.count = count


class _Layout(NamedTuple):
  """What the entries of `columns` say."""

  column_of: Mapping[str, str]  # by target
  value_of: Mapping[str, str]  # the value that a row must have, by column
  to_read: tuple[str, ...]  # names of the columns that these need


class _Repeat(NamedTuple):
  """A row whose prompt an earlier row has."""

  sentence: str  # which row repeats which, and how their labels differ
  is_conflict: bool  # whether the labels differ


def load(
  path: str | pathlib.Path,
  verifier: str = "auto",
  columns: Sequence[str] = (),
  system: str = "",
  skip_bad: int = 0,
  required_targets: Sequence[str] = ("prompt", "label"),
  patterns: tuple[str, ...] = (),
  split: files.Split | None = None,
  copies: str = "drop",
  columns_key: str = "columns",
  keep: Sequence[str] = (),
  derived: Derived | None = None,
) -> ProblemsAndCounts:
  """Returns the problems in the rows of a local file, folder or tfds folder, in their order, and counts of the rows.

  columns: entries that say where the fields of a problem are, see below. (): for files like the study's, STUDY_COLUMNS;
    for others the only column named prompt, question, problem or query, and the only one named answer, label,
    ground_truth, final_answer or expected_answer (short_answer, where it stands beside answer); if there is none of
    these, the box in a column named solution. Without a prompt it is the column messages. If it ends in an assistant
    turn, that is cut off, and is the solution if there is no other. The log says what was taken.
  verifier: "math", "choice", "graph" (the verifier that extra["source_dataset"] names) or "auto" (the same, but math
    where it names none).
  system: a system message for prompts that have none; "": none. skip_bad: how many rows may be bad and are left out.
  required_targets: targets that `columns` must have. patterns, split: which files of a folder to read (`files.files`).
  copies: what happens to a row with the prompt of an earlier one: "drop" leaves it out and logs it, "keep" makes it a
    problem of its own, "error" raises InputError. columns_key: the config key of `columns`, for messages, or a text in
    which `{}` stands for the entries (`as_setting`).
  keep: names of columns whose cells, where a row has them, go to `Problem.row`; EVERY among them: all columns.
  derived: further entries of `Problem.extra`, also of rows that `prepared.save` wrote; None: there are none.

  Entries of `columns`:
    TARGET=COLUMN: the column holds the prompt (a text or messages), label, truth, id, trace, solution, extra (a struct)
      or extra.NAME. The target `boxed` takes the label from a solution: its last box, else its last line
      `#### ANSWER`, else the whole of a short one. Trace and solution go to extra.
    COLUMN==VALUE: rows with another value are left out.
  COLUMN is a name, or
    a.b: a path into structs or JSON text
    a|b: the first of these that the row has
    a?: a column that may be missing or null; only for extra, extra.NAME and boxed
    a[:-1], a[-1]: of messages that end in an assistant turn, all but that turn, and its text
  A label is a text or a number; if its last line is `#### ANSWER`, that is the label. If it is a list of texts, or JSON
  of one, each is right: the first becomes the label and the others go to extra["also"]. Without a column for the truth
  it is extra["original_ground_truth"], for graph tasks the solution in `extra`, else the label.

  Rows that `prepared.save` wrote need no columns and bring their verifiers. Raises InputError if `verifier` is not
  "auto" for these, for wrong `columns`, for more than `skip_bad` bad rows, and where no problem is left.
  """
  if verifier not in VERIFIER_CHOICES and not named.is_name(verifier):
    raise InputError(f"verifier of {path} is {verifier!r}; use one of {', '.join(VERIFIER_CHOICES)}, or path.py:NAME")
  reader = _RowReader(path, verifier, columns, system, required_targets, columns_key, keep, derived)
  collected = _Collected(copies)
  counts = dict.fromkeys(("rows", "other", "unanswered", "bad", "copies", "conflicts"), 0)
  for place, row in files.read(path, reader.columns_to_read, patterns, split):
    counts["rows"] += 1
    try:
      problem = reader.problem(place, row)
      repeat = collected.add(place, problem)
    except _LeftOut as left_out:
      counts[left_out.count] += 1
    except BadRow as error:
      counts["bad"] += 1
      if counts["bad"] > skip_bad:
        raise InputError(f"{place}, {error}; correct or drop the row, or raise skip_bad = {skip_bad}") from None
    else:
      if repeat:
        counts["conflicts" if repeat.is_conflict else "copies"] += 1
      if repeat and copies == "error":
        raise InputError(f"{path}: {repeat.sentence}; correct one, or take copies=drop or keep")
  if not collected.problems:
    raise InputError(f"{path}: no row gives a problem ({counts_in_words(counts)}); correct the file or the columns")
  _log_counts(path, counts, collected.repeats, columns_key)
  _log_earlier_turns(path, collected.problems)
  return ProblemsAndCounts(collected.problems, counts)


class _RowReader:
  """Makes problems of the rows of a source; the parameters are those of `load`.

  Without named columns, rows of prepared sets are read as such, and the first other row says where the fields of all
  other rows are.
  """

  def __init__(
    self,
    path: str | pathlib.Path,
    verifier: str,
    columns: Sequence[str],
    system: str,
    required_targets: Sequence[str],
    columns_key: str,
    keep: Sequence[str],
    derived: Derived | None,
  ):
    self._path, self._verifier, self._system = path, verifier, system
    self._required_targets, self._columns_key = required_targets, columns_key
    self._keep = keep
    self._derived = derived
    self._may_be_prepared = not columns
    self._layout = _parse_columns(columns, required_targets) if columns else None

  @property
  def columns_to_read(self) -> tuple[str, ...]:
    """Names of the columns that are needed; (): all."""
    if self._layout is None or EVERY in self._keep:
      return ()
    derived = _columns_to_read(self._derived.columns) if self._derived else ()
    return tuple(dict.fromkeys((*self._layout.to_read, *self._keep, *derived)))

  def problem(self, place: str, row: Mapping | BadRow) -> Problem:
    """Returns the problem of a row. Raises BadRow or _LeftOut where it gives none."""
    if isinstance(row, BadRow):
      raise row
    if self._may_be_prepared and _is_prepared(row):
      problem = _prepared(row, self._verifier, self._system)
      prompt_column = "messages"
    else:
      if self._layout is None:
        columns = _columns_of_row(place, row, self._columns_key, str(self._path))
        self._layout = _parse_columns(columns, self._required_targets)
      if any(str(_cell(row, column)) != value for column, value in self._layout.value_of.items()):
        raise _LeftOut("other")
      problem = _problem(row, self._layout.column_of, self._verifier, self._system)
      prompt_column = self._layout.column_of["prompt"]
    _check_turns(prompt_column, problem.messages, self._columns_key)
    if self._derived:
      further = self._derived.compute([_cell(row, column) for column in self._derived.columns])
      problem = dataclasses.replace(problem, extra={**problem.extra, **further})
    kept = {str(name): cell for name, cell in row.items() if name in self._keep or EVERY in self._keep}
    return dataclasses.replace(problem, row=kept) if kept else problem


class _Collected:
  """The problems of a source, in order.

  A problem with the prompt of an earlier one is kept as a further problem if `copies` is "keep", else left out.
  """

  def __init__(self, copies: str):
    self.problems: list[Problem] = []
    self.repeats: list[_Repeat] = []  # of the problems that are left out
    self._keeps_copies = copies == "keep"
    self._first_with: dict[str, tuple[str, Problem]] = {}  # place and problem by prompt
    self._prompt_of_id: dict[str, str] = {}

  def add(self, place: str, problem: Problem) -> _Repeat | None:
    """Adds a problem and returns None, or, if it is a copy that is left out, returns which row it repeats.

    Raises BadCell if a problem with another prompt has the same id.
    """
    prompt = _prompt_id(problem.messages)
    if self._prompt_of_id.setdefault(problem.id, prompt) != prompt:
      raise BadCell("id", problem.id, "an id that no other prompt has")
    first_place, first = self._first_with.setdefault(prompt, (place, problem))
    if first is problem:
      self.problems.append(problem)
    elif self._keeps_copies:
      self.problems.append(self._with_new_id(problem, prompt))
    else:
      self.repeats.append(_repeat(place, problem, first_place, first))
      return self.repeats[-1]
    return None

  def _with_new_id(self, problem: Problem, prompt: str) -> Problem:
    """Returns a copy of the problem with the id ID#2, or with the first number that is free."""
    number = 2
    while f"{problem.id}#{number}" in self._prompt_of_id:
      number += 1
    new_id = f"{problem.id}#{number}"
    self._prompt_of_id[new_id] = prompt
    return dataclasses.replace(problem, id=new_id)


def _is_prepared(row: Mapping) -> bool:
  """Returns whether the row has all columns that `prepared.save` writes."""
  return all(field in row for field in prepared.FIELDS)


def _repeat(place: str, problem: Problem, first_place: str, first: Problem) -> _Repeat:
  """Describes the row at `place`, which has the prompt of the earlier row at `first_place`."""
  folder = first_place.rpartition(":")[0]
  if folder:
    place = place.removeprefix(f"{folder}:").strip()
    first_place = first_place.removeprefix(f"{folder}:").strip()
  sentence = f"{_row_name(place)} repeats {_row_name(first_place)}"
  if problem.label == first.label:
    return _Repeat(sentence, False)
  return _Repeat(f"{sentence} with the label {problem.label[:40]!r} for {first.label[:40]!r}", True)


def _row_name(place: str) -> str:
  return f"line {place}" if place.isdecimal() else place


def _log_counts(
  path: str | pathlib.Path, counts: Mapping[str, int], repeats: Sequence[_Repeat], columns_key: str
) -> None:
  """Logs the counts if rows were left out, as a warning if by other reasons than an entry COLUMN==VALUE.

  repeats: the copies that were left out; some are shown, conflicts first.
  """
  is_unexpected = any(counts[name] for name in ("unanswered", "bad", "copies", "conflicts"))
  if not is_unexpected and not counts["other"]:
    return
  left_out = ""
  if repeats:
    conflicts_first = sorted(repeats, key=lambda repeat: not repeat.is_conflict)
    sentences = [repeat.sentence for repeat in conflicts_first[:_REPEATS_SHOWN]]
    if len(repeats) > len(sentences):
      sentences.append(f"... ({len(repeats)} in all)")
    left_out = f"; left out: {', '.join(sentences)}"
    if "{}" in columns_key:
      left_out += f"; {as_setting(columns_key, ['copies=keep'])} keeps them"
    elif columns_key.startswith(_GROUPS_WITH_COPIES):
      left_out += f"; {columns_key.removesuffix('columns')}copies=keep keeps them"
  level = logging.WARNING if is_unexpected else logging.INFO
  _LOG.log(level, "%s: %s%s", path, counts_in_words(counts), left_out)


def _log_earlier_turns(path: str | pathlib.Path, problems: Sequence[Problem]) -> None:
  """Logs how many prompts have turns of the assistant, which are few-shot examples or an earlier conversation."""
  turns = [sum(turn["role"] == "assistant" for turn in problem.messages) for problem in problems]
  if any(turns):
    _LOG.warning(
      "%s: %d of %d prompts hold earlier turns of user and assistant (up to %d answers); they stay in the prompt",
      path,
      sum(count > 0 for count in turns),
      len(turns),
      max(turns),
    )


def _columns_of_row(place: str, row: Mapping, columns_key: str, path: str) -> Sequence[str]:
  """Returns STUDY_COLUMNS if the row has them, else the entries that `_recognised` returns, which are logged.

  Raises InputError, with entries to try, where neither fits.
  """
  if "reward_model" in row and "prompt" in row:
    return STUDY_COLUMNS
  columns = _recognised(row)
  if columns is None:
    names = ", ".join(map(str, row))[:200]
    raise InputError(
      f"{place}: the names of the columns ({names}) don't say which one holds the prompt and which one the label; name "
      f"them, such as --{as_setting(columns_key, _suggested_columns(row))}"
    )
  _LOG.warning(
    "%s: columns are taken by their names; this line sets them: --%s", path, as_setting(columns_key, columns)
  )
  return columns


def default_columns(path: str | pathlib.Path, patterns: tuple[str, ...] = ()) -> Sequence[str]:
  """Returns the entries of `columns`, such as `prompt=question`, with which `load` reads a source if it is given none.

  They are chosen by the first row that can be read. Returns () for rows that `prepared.save` wrote, and where no entry
  fits (`load` then raises InputError). patterns: which files of a folder to read (see `files.files`).
  """
  rows = files.read(path, patterns=patterns, split=files.Split(files.ALL))
  first_row = next((row for _, row in rows if isinstance(row, Mapping)), {})
  if _is_prepared(first_row):
    return ()
  if "reward_model" in first_row and "prompt" in first_row:
    return STUDY_COLUMNS
  return _recognised(first_row) or ()


def _recognised(row: Mapping) -> tuple[str, ...] | None:
  """Returns entries of `columns` for a row whose columns have known names, None where they don't say one prompt.

  The prompt is the only column of _PROMPT_COLUMNS, else `messages`. The label is that of `_recognised_label`, else the
  last turn of messages that end in one of the assistant.
  """
  name_of = {str(name).strip().lower(): str(name) for name in row}
  prompts = [name_of[known] for known in _PROMPT_COLUMNS if known in name_of]
  label = _recognised_label(name_of)
  messages = name_of.get(_MESSAGES_COLUMN)
  if label is None or len(prompts) > 1:
    return None
  if messages and (not prompts or (not label and _ends_in_assistant_turn(row[messages]))):
    prompts = [messages]
  if not prompts:
    return None
  prompt = prompts[0]
  if _ends_in_assistant_turn(row[prompt]):
    return f"prompt={prompt}[:-1]", label or f"boxed={prompt}[-1]"
  return (f"prompt={prompt}", label) if label else None


def _recognised_label(name_of: Mapping[str, str]) -> str | None:
  """Returns the entry of `columns` for the only known label, else for a solution; "" without one, None for several.

  name_of: the columns of a row by their names in lower case.
  """
  labels = [known for known in _LABEL_COLUMNS if known in name_of]
  if _SHORT_ANSWER_COLUMN in name_of and labels in ([], ["answer"]):
    labels = [_SHORT_ANSWER_COLUMN]
  if len(labels) > 1:
    return None
  if labels:
    return f"label={name_of[labels[0]]}"
  return f"boxed={name_of[_SOLUTION_COLUMN]}" if _SOLUTION_COLUMN in name_of else ""


def _suggested_columns(row: Mapping) -> tuple[str, str]:
  """Returns entries of `columns` that might fit the row, for an error message."""
  names = [str(name) for name in row]
  names_by_lower: dict[str, str] = {}
  for name in names:
    if _ends_in_assistant_turn(row[name]):
      return f"prompt={name}[:-1]", f"boxed={name}[-1]"
    names_by_lower.setdefault(name.strip().lower(), name)
  prompts = [names_by_lower[known] for known in (*_PROMPT_COLUMNS, "messages") if known in names_by_lower]
  prompt = [*prompts, *names, "A"][0]
  labels = [names_by_lower[known] for known in _LABEL_COLUMNS if known in names_by_lower]
  labels = [name for name in labels if name != prompt]
  if not labels and _SOLUTION_COLUMN in names_by_lower:
    return f"prompt={prompt}", f"boxed={names_by_lower[_SOLUTION_COLUMN]}"
  other_names = [name for name in reversed(names) if name != prompt]
  label = [*labels, *other_names, "B"][0]
  return f"prompt={prompt}", f"label={label}"


def _ends_in_assistant_turn(cell: Any) -> bool:
  """Returns whether a cell looks like messages whose last turn is the assistant's."""
  is_messages = isinstance(cell, list) and bool(cell) and isinstance(cell[-1], Mapping)
  return is_messages and cell[-1].get("role") == "assistant"


def _check_turns(column: str, turns: Sequence[Mapping[str, str]], columns_key: str) -> None:
  """Raises BadCell for a prompt that ends in an assistant turn or holds no text. column: that of the prompt."""
  if turns[-1]["role"] == "assistant":
    name = column.removesuffix("?")
    raise BadCell(
      name,
      turns[-1],
      f"a last turn of the user: with --{columns_key.replace('{}', '...')} prompt={name}[:-1] is the turns before, "
      f"boxed={name}[-1] takes "
      f"the answer from the last one, and solution={name}[-1] is its text",
    )
  if all(not turn["content"].strip() for turn in turns):
    raise BadCell(column, list(turns), "a turn with text")


def counts_in_words(counts: Mapping[str, int]) -> str:
  """Returns counts of rows by name as text, such as `5 rows, 1 bad`. A count of 0 is left out, unless it is `rows`."""
  return ", ".join(f"{number} {name}" for name, number in counts.items() if number or name == "rows")


def _prompt_id(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns the id of a prompt: 16 hexadecimal digits of a hash of its turns."""
  text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)
  return hashlib.sha1(text.encode()).hexdigest()[:16]


def as_setting(columns_key: str, entries: Sequence[str]) -> str:
  """Returns what sets these entries, for messages, such as `config.problems.columns="prompt=A,label=B"`.

  columns_key: the config key of `columns`; or a text in which `{}` stands for the entries, as
  `config.heldout.sets="mine=path.jsonl[{}]"`.
  """
  text = ",".join(entries)
  if "{}" in columns_key:
    return columns_key.replace("{}", text)
  return f'{columns_key}="{text}"'


def check_entries(columns: Sequence[str]) -> None:
  """Raises InputError for entries of `columns` that can't be parsed, and where prompt or label is missing."""
  _parse_columns(columns, ("prompt", "label"))


def _parse_columns(columns: Sequence[str], required_targets: Sequence[str]) -> _Layout:
  """Returns what the entries of `columns` say.

  Raises InputError for an entry that can't be parsed or is there twice, and for a missing one of `required_targets`.
  """
  column_of: dict[str, str] = {}
  value_of: dict[str, str] = {}
  for entry in columns:
    match = _ENTRY.fullmatch(entry)
    is_filter = bool(match) and match[2] == "=="
    if not match or not (is_filter or match[1] in _TARGETS or match[1].startswith("extra.")):
      targets = ", ".join(_TARGETS)
      raise InputError(f"columns entry {entry!r}: wanted TARGET=COLUMN ({targets} or extra.NAME), or COLUMN==VALUE")
    left_sides = value_of if is_filter else column_of
    if match[1] in left_sides:
      raise InputError(f"columns entry {entry!r}: {match[1]} is there twice; name substitutes as A|B")
    left_sides[match[1]] = match[3]
  for target in required_targets:
    if target not in column_of and not (target == "label" and "boxed" in column_of):
      raise InputError(f"columns {', '.join(columns)}: no column for {target}; add {target}=COLUMN")
  return _Layout(column_of, value_of, _columns_to_read((*column_of.values(), *value_of)))


def _columns_to_read(columns: Sequence[str]) -> tuple[str, ...]:
  """Returns the names of the columns of a file that the COLUMNs of entries may be in, each once."""
  to_read: dict[str, None] = {}  # a set that keeps the order
  for column in columns:
    for path in _substitutes(column):
      to_read.update(dict.fromkeys(_heads(_split_part(path).column)))
  return tuple(to_read)


def _substitutes(column: str) -> list[str]:
  """Returns the paths of which a row's first one counts, from the COLUMN of an entry."""
  return column.removesuffix("?").split("|")


class _PathAndPart(NamedTuple):
  """A path of an entry, without and with the messages that it selects."""

  column: str
  part: str  # ":-1" for COLUMN[:-1], "-1" for COLUMN[-1], "" for the whole cell


def _split_part(path: str) -> _PathAndPart:
  match = _PART.fullmatch(path)
  return _PathAndPart(match[1], match[2]) if match else _PathAndPart(path, "")


def _heads(path: str) -> list[str]:
  """Returns the column names with which a path may begin, the longest first; names may hold dots."""
  parts = path.split(".")
  return [".".join(parts[:size]) for size in range(len(parts), 0, -1)]


def _cell(row: Mapping, column: str) -> object:
  """Returns a row's cell for the COLUMN of an entry; None if it is optional and missing. Raises BadRow if missing."""
  is_optional = column.endswith("?")
  paths = _substitutes(column)
  for path in paths:
    name, part = _split_part(path)
    if any(head in row for head in _heads(name)):
      cell = _cell_at(row, name, is_optional)
      if not part or (cell is None and is_optional):
        return cell
      return _turns(path, name, cell, part)
  if is_optional:
    return None
  raise BadRow(f"column {_split_part(paths[0]).column} is missing, found {', '.join(map(str, row))}"[:200])


def _cell_at(row: Mapping, path: str, is_optional: bool) -> object:
  """Returns the cell at a path into structs, where the longest name that a struct has counts, as names may hold dots.

  Returns None where the last name, or if `is_optional` a struct, is missing. Raises BadCell for a cell that is no
  struct though the path goes on.
  """
  cell: Any = row
  rest_of_path, path_of_cell = path, ""
  while rest_of_path:
    if path_of_cell:
      if cell is None and is_optional:
        return None
      cell = prepared.checked_struct(path_of_cell, cell)
    first_name = rest_of_path.partition(".")[0]
    name = next((head for head in _heads(rest_of_path) if head in cell), first_name)
    cell = cell.get(name)
    rest_of_path = rest_of_path[len(name) + 1 :]
    path_of_cell = f"{path_of_cell}.{name}" if path_of_cell else name
  return cell


def _turns(path: str, column: str, cell: object, part: str) -> object:
  """Returns the messages before the last (part ":-1") or the text of the last one ("-1"), which is the assistant's.

  path: the path with the part, such as `a[-1]`, for messages. Raises BadCell for messages that end otherwise.
  """
  turns = prepared.checked_messages(column, cell)
  if turns[-1]["role"] != "assistant" or (part == ":-1" and len(turns) == 1):
    raise BadCell(path, list(turns), "messages that end in an assistant turn behind others")
  if part == ":-1":
    return list(turns[:-1])
  return turns[-1]["content"]


def _prepared(row: Mapping, verifier: str, system: str) -> Problem:
  """Returns the problem of a row that `prepared.save` wrote. Raises InputError for a verifier besides "auto"."""
  problem = prepared.from_row(row)
  if verifier != "auto":
    raise InputError(
      f"verifier = {verifier!r}: the rows are those of a prepared set, which brings its verifiers (here "
      f"{problem.verifier}); leave it at auto, or prepare the set again"
    )
  return dataclasses.replace(problem, messages=_with_system(problem.messages, system))


def _problem(row: Mapping, column_of: Mapping[str, str], verifier: str, system: str) -> Problem:
  """Returns the problem of a row. column_of: the column by target. Raises BadRow or _LeftOut where it gives none."""
  messages = _messages(column_of["prompt"], _cell(row, column_of["prompt"]), system)
  extra = _extra(row, column_of)
  verifier = _verifier(extra, verifier)
  labels = _labels(row, column_of)
  truths = _truths(row, column_of, extra, verifier) or labels
  also = {}
  for first, *equals in (labels, truths):
    if equals:
      also[first] = equals
  if also:
    extra["also"] = also
  problem_id = _scalar("id", _cell(row, column_of["id"])) if "id" in column_of else _prompt_id(messages)
  return Problem(problem_id, messages, labels[0], truths[0], verifier, extra)


def _messages(column: str, cell: object, system: str) -> tuple[Mapping[str, str], ...]:
  """Returns the turns of a prompt cell, text or messages, with the system message."""
  if isinstance(cell, str):
    cell = [{"role": "user", "content": prepared.checked_text(column, cell)}]
  return _with_system(prepared.checked_messages(column, cell), system)


def _with_system(turns: tuple[Mapping[str, str], ...], system: str) -> tuple[Mapping[str, str], ...]:
  """Returns the turns, behind the system message if there is one and they have none."""
  if system and all(turn["role"] != "system" for turn in turns):
    return {"role": "system", "content": system}, *turns
  return turns


def _extra(row: Mapping, column_of: Mapping[str, str]) -> dict:
  """Returns `extra` from the columns for extra, extra.NAME, trace and solution, without nulls."""
  cell = _cell(row, column_of["extra"]) if "extra" in column_of else None
  extra = {} if cell in (None, "") else prepared.checked_struct(_substitutes(column_of["extra"])[0], cell)
  for target, column in column_of.items():
    if target.startswith("extra."):
      extra[target.removeprefix("extra.")] = _cell(row, column)
    elif target in ("trace", "solution"):
      extra[target] = prepared.checked_text(column, _cell(row, column))
  return {key: value for key, value in extra.items() if value is not None and key != "also"}  # "also" is set by us


def _verifier(extra: Mapping, choice: str) -> str:
  """Returns the verifier of a row. choice: one of VERIFIER_CHOICES; see `load`.

  Raises BadCell for "graph" without a graph task, and where `extra` lacks what the graph task needs.
  """
  if choice not in ("auto", "graph"):
    return choice
  task = extra.get("source_dataset")
  if task not in GRAPH_TASKS:
    if choice == "graph":
      raise BadCell("extra_info", task, f"a source_dataset among {', '.join(GRAPH_TASKS)}")
    return "math"
  missing = [key for key in GRAPH_TASKS[task] if key not in extra]
  if missing:
    raise BadCell("extra_info", sorted(extra), f"the key {missing[0]}, which {task} needs")
  return task


def _labels(row: Mapping, column_of: Mapping[str, str]) -> list[str]:
  """Returns the accepted answers of a row's label, else the answer of its boxed solution; [""] without both columns.

  Raises _LeftOut where a solution has no answer.
  """
  if "label" in column_of:
    return _accepted_answers(column_of["label"], _cell(row, column_of["label"]))
  if "boxed" not in column_of:
    return [""]
  solution = _cell(row, column_of["boxed"])
  if solution is None and column_of["boxed"].endswith("?"):
    raise _LeftOut("unanswered")
  solution = prepared.checked_text(column_of["boxed"], solution).strip()
  is_short = "\n" not in solution and len(solution) <= _SHORT
  answer = last_box(solution) or _behind_hash(solution) or (solution if is_short else "")
  if not answer.strip():
    raise _LeftOut("unanswered")
  return [answer]


def _behind_hash(solution: str) -> str:
  """Returns the answer in a last line `#### ANSWER`, as GSM8K writes it; "" where the text has no such line."""
  match = _HASH_LINE.fullmatch(solution.rstrip().rpartition("\n")[2])
  return match[1] if match else ""


def _scalar(column: str, cell: object) -> str:
  """Returns a cell that is text, or a number as text, else raises BadCell."""
  is_number = isinstance(cell, (int, float)) and not isinstance(cell, bool) and math.isfinite(cell)
  return prepared.checked_text(column, str(cell) if is_number else cell)


def _accepted_answers(column: str, cell: object) -> list[str]:
  """Returns the accepted answers of a cell: the text, or the entries of a list of texts, which may be JSON.

  `[1, 2]` is a text, as it may be an interval. Raises BadCell for a blank text and for an empty list.
  """
  entries = cell
  if isinstance(cell, str) and cell.lstrip().startswith("["):
    with contextlib.suppress(ValueError):
      entries = files.parse_json(cell)
  if not (isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)):
    entries = [cell]
  answers = []
  for entry in entries:
    answer = _behind_hash(entry) or entry if isinstance(entry, str) else entry
    try:
      answers.append(_scalar(column, answer))
    except BadCell:
      raise BadCell(column, cell, _ANSWERS) from None
  if not answers:
    raise BadCell(column, cell, _ANSWERS)
  return answers


def _truths(row: Mapping, column_of: Mapping[str, str], extra: Mapping, verifier: str) -> list[str] | None:
  """Returns the right answers, where a row has them beside a label that may be wrong, else None.

  They are those of the target `truth`, or stand in `extra` as the study's files have them.
  """
  if "truth" in column_of:
    return _accepted_answers(column_of["truth"], _cell(row, column_of["truth"]))
  if "original_ground_truth" in extra:
    return _accepted_answers("extra_info.original_ground_truth", extra["original_ground_truth"])
  if verifier in GRAPH_TASKS and "solution_path" in extra:
    return [" → ".join(extra["solution_path"])]
  if verifier in GRAPH_TASKS and "solution" in extra:
    return [str(extra["solution"])]
  return None
