"""Rows of parquet and jsonl files, of folders of them and of tfds data sets, each with the place it came from."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping

from jaxrlvr.types import InputError


class BadRow(ValueError):
  """What is wrong with one row; whoever reports it adds the place."""


class BadCell(BadRow):
  """What is wrong with one cell."""

  def __init__(self, column: str, found: object, wanted: str):
    super().__init__(f"column {column}: found {repr(found)[:80]}, wanted {wanted}")


Row = tuple[str, Mapping | BadRow]  # (place, columns); a row that can't be read at all is a BadRow


def read(path: str | pathlib.Path, columns: tuple[str, ...] = (), patterns: tuple[str, ...] = ()) -> Iterator[Row]:
  """The rows of a file, of all files below a folder in the order of their names, or of a tfds folder's split `train`.

  `columns`: the only ones wanted of parquet files, (): all. `patterns`: see `files`. No row at all is an error.
  """
  count = 0
  for file in files(path, patterns):
    for row in _READERS[file.suffix](file, columns):
      count += 1
      yield row
  if not count:
    raise InputError(f"{path}: found 0 rows, wanted at least 1")


def files(path: str | pathlib.Path, patterns: tuple[str, ...] = ()) -> list[pathlib.Path]:
  """The data files that a path stands for; a tfds folder stands for itself, as its dataset_info.json.

  `patterns`: of a folder's files only those whose path ends like one of these.
  """
  path = pathlib.Path(path)
  if (path / _TFDS).is_file() and (path / "features.json").is_file():
    return [path / _TFDS]
  kinds = (".parquet", ".jsonl")
  if not path.is_dir():
    if path.suffix not in kinds:
      raise InputError(f"{path}: is no folder, and its name ends in neither of {', '.join(kinds)}; correct the path")
    return [path]
  below = (file for file in sorted(path.rglob("*")) if file.suffix in kinds and file.is_file())
  found = [file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]
  if patterns:
    found = [file for file in found if any(fnmatch.fnmatch(file.absolute().as_posix(), f"*/{p}") for p in patterns)]
  if not found:
    like = " or ".join(patterns or (f"*{kind}" for kind in kinds))
    raise InputError(f"{path}: holds no file like {like}, and is no tfds data set; correct the path")
  return found


def parse(text: str) -> object:
  """The value of JSON text; ValueError whatever is wrong with it."""
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError("nested too deeply") from None


@contextlib.contextmanager
def parquet(path: pathlib.Path):
  """The open file; whatever is wrong with it, then or while it is read, is an InputError."""
  import pyarrow
  import pyarrow.parquet

  try:
    with open(path, "rb") as file:
      yield pyarrow.parquet.ParquetFile(file)
  except FileNotFoundError:
    raise InputError(f"{path}: no such file; correct the path") from None
  except (OSError, pyarrow.ArrowException) as error:
    reason = str(error).partition("\n")[0]
    raise InputError(f"{path}: not a readable parquet file ({reason}); fetch it again") from None


@contextlib.contextmanager
def lines(path: pathlib.Path):
  """The open file in bytes."""
  try:
    with open(path, "rb") as file:
      yield file
  except OSError as error:
    raise InputError(f"{path}: not a readable file ({error.strerror}); correct the path") from None


def _parquet(path: pathlib.Path, columns: tuple[str, ...]) -> Iterator[Row]:
  number = 0
  with parquet(path) as table:
    wanted = [name for name in table.schema_arrow.names if not columns or name in columns]
    for batch in table.iter_batches(256, columns=wanted):
      for row in batch.to_pylist():
        yield f"{path}: row {number}", row
        number += 1


def _jsonl(path: pathlib.Path, columns: tuple[str, ...]) -> Iterator[Row]:
  with lines(path) as file:
    for number, line in enumerate(file, 1):
      if line.strip():  # a blank line is no row
        yield f"{path}:{number}", json_row(line, number == 1)


def json_row(line: bytes, first: bool) -> Mapping | BadRow:
  """One line of jsonl; the first may begin with a byte-order mark."""
  try:
    row = parse(line.decode("utf-8-sig" if first else "utf-8"))
  except UnicodeDecodeError as error:
    return BadRow(f"not UTF-8 (byte {error.start} of the line)")
  except ValueError as error:
    cut = "" if line.endswith(b"\n") else ", and the file ends here: cut off?"
    return BadRow(f"no JSON ({error}){cut}")
  return row if isinstance(row, dict) else BadRow(f"found {repr(row)[:80]}, wanted a JSON object")


_TFDS = "dataset_info.json"


def _tfds(path: pathlib.Path, columns: tuple[str, ...]) -> Iterator[Row]:
  folder, package = path.parent, tfds()
  try:
    source = package.builder_from_directory(folder).as_data_source(split="train")
    for number in range(len(source)):
      yield f"{folder}: row {number}", _plain_row(source[number])
  except Exception as error:  # tfds, protobuf and ArrayRecord each have their own
    reason = str(error).strip().partition("\n")[0]
    raise InputError(f"{folder}: no readable tfds data set with a split train as ArrayRecord ({reason})") from None


def _plain_row(cells: Mapping) -> Mapping | BadRow:
  try:
    return _plain(cells)
  except UnicodeDecodeError as error:
    return BadRow(f"not UTF-8 (byte {error.start} of a text)")


def tfds():
  """The package tensorflow-datasets, quiet. It must not need TensorFlow for what is done here."""
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise InputError(f"a tfds data set needs a package ({error}); pip install 'jaxrlvr[tfds]'") from None
  tensorflow_datasets.disable_progress_bar()
  return tensorflow_datasets


def _plain(value: object) -> object:
  """Bytes as text, arrays as lists, numpy scalars as Python's."""
  value = value.tolist() if hasattr(value, "tolist") else value
  if isinstance(value, Mapping):
    return {key: _plain(part) for key, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(part) for part in value]
  return value.decode() if isinstance(value, bytes) else value


_READERS: Mapping[str, Callable[[pathlib.Path, tuple[str, ...]], Iterator[Row]]] = {
  ".parquet": _parquet,
  ".jsonl": _jsonl,
  ".json": _tfds,
}
