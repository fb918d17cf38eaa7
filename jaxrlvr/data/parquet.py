"""Reads problems from parquet files laid out as the study's (and verl's): prompt, reward_model, extra_info."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping

from jaxrlvr.types import InputError, Problem

# Verifier by extra_info.source_dataset, with the keys of extra_info that it reads.
_GRAPH = {
  "largest_island": (),
  "quantum_lock": ("buttons", "initial_state", "initial_value", "target_value"),
}
_CHOICES = ("auto", "math", "graph")


class _Cell(ValueError):
  """What is wrong with one cell; `load` adds the file and the row."""

  def __init__(self, column: str, found: object, wanted: str):
    super().__init__(f"column {column}: found {repr(found)[:80]}, wanted {wanted}")


def load(path: str | pathlib.Path, verifier: str = "auto") -> list[Problem]:
  """The file's problems in its order, copies dropped (of several, the first row counts).

  `verifier`: "math"; "graph", by extra_info.source_dataset; or "auto": graph where that names a graph task, else math.
  A ground truth that is a JSON list counts as any of its entries: the first is the label, the rest `extra["also"]`.
  """
  if verifier not in _CHOICES:
    raise InputError(f"verifier of a parquet file is {verifier!r}; use one of {', '.join(_CHOICES)}")
  problems: dict[str, Problem] = {}
  for number, row in enumerate(_rows(path)):
    try:
      problem = _problem(row, verifier)
    except _Cell as error:
      raise InputError(f"{path}: row {number}, {error}; correct or drop the row") from None
    problems.setdefault(problem.id, problem)
  return list(problems.values())


def _rows(path: str | pathlib.Path) -> list[dict]:
  import pyarrow
  import pyarrow.parquet

  try:
    with open(path, "rb") as file:
      table = pyarrow.parquet.read_table(file)
  except (OSError, pyarrow.ArrowException) as error:
    reason = str(error).partition("\n")[0]
    raise InputError(f"{path}: not a readable parquet file ({reason}); fetch it again") from None
  for column in ("prompt", "reward_model"):
    if column not in table.column_names:
      found = ", ".join(table.column_names)
      raise InputError(f"{path}: column {column} is missing, found {found}; wanted prompt, reward_model, extra_info")
  if not table.num_rows:
    raise InputError(f"{path}: found 0 rows, wanted at least 1 problem")
  return table.to_pylist()


def _problem(row: Mapping, verifier: str) -> Problem:
  messages = _messages(row["prompt"])
  extra = _extra(row.get("extra_info"))
  if row.get("data_source"):
    extra["data_source"] = row["data_source"]
  source = extra.get("source_dataset")
  if verifier == "graph" and source not in _GRAPH:
    raise _Cell("extra_info", source, f"a source_dataset among {', '.join(_GRAPH)}")
  graph = verifier != "math" and source in _GRAPH
  missing = [key for key in _GRAPH[source] if key not in extra] if graph else []
  if missing:
    raise _Cell("extra_info", sorted(extra), f"the key {missing[0]}, which {source} needs")
  reward_model = row["reward_model"]
  if not isinstance(reward_model, Mapping):
    raise _Cell("reward_model", reward_model, "a struct with a ground_truth")
  labels = _labels("reward_model.ground_truth", reward_model.get("ground_truth"))
  truths = _truths(extra, graph) or labels
  also = {first: rest for first, *rest in (labels, truths) if rest}
  return Problem(
    id=hashlib.sha1("\n".join(f"{m['role']}: {m['content']}" for m in messages).encode()).hexdigest()[:16],
    messages=messages,
    label=labels[0],
    truth=truths[0],
    verifier=source if graph else "math",
    extra=extra | ({"also": also} if also else {}),
  )


def _messages(prompt: object) -> tuple[Mapping[str, str], ...]:
  if not isinstance(prompt, list) or not prompt:
    raise _Cell("prompt", prompt, "a non-empty list of messages")
  for message in prompt:
    fields = [message.get(key) for key in ("role", "content")] if isinstance(message, Mapping) else [None]
    if not all(isinstance(field, str) and field.strip() for field in fields):
      raise _Cell("prompt", message, "a message with a role and a content")
  return tuple({"role": message["role"], "content": message["content"]} for message in prompt)


def _extra(cell: object) -> dict:
  """extra_info as a dict without its nulls, from a struct, a map or JSON text."""
  if isinstance(cell, str):
    try:
      cell = json.loads(cell)
    except ValueError:
      raise _Cell("extra_info", cell, "a struct, a map or the text of a JSON object") from None
  try:
    return {key: value for key, value in dict(cell or {}).items() if value is not None}
  except (TypeError, ValueError):
    raise _Cell("extra_info", cell, "a struct, a map or the text of a JSON object") from None


def _labels(column: str, cell: object) -> list[str]:
  """The accepted answers: the text, or the entries of a list of texts; `[1, 2]` is text, maybe an interval."""
  entries = cell
  if isinstance(cell, str) and cell.lstrip().startswith("["):
    try:
      entries = json.loads(cell)
    except ValueError:
      pass
  if not (isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)):
    entries = [cell]
  if not entries or not all(isinstance(entry, str) and entry.strip() for entry in entries):
    raise _Cell(column, cell, "a non-empty text, or a JSON list of such")
  return entries


def _truths(extra: Mapping, graph: bool) -> list[str] | None:
  """The right answers where extra_info keeps them beside a ground truth that may be wrong."""
  if "original_ground_truth" in extra:
    return _labels("extra_info.original_ground_truth", extra["original_ground_truth"])
  if graph and "solution_path" in extra:
    return [" → ".join(extra["solution_path"])]
  if graph and "solution" in extra:
    return [str(extra["solution"])]
  return None
