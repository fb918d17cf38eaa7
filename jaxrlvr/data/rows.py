"""Rows of parquet and jsonl files, of folders of them and of tfds data sets, each with the place it came from."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from jaxrlvr.types import InputError

LINES = 1024  # of a jsonl file that are read together, as the rows of a parquet row group are


class BadRow(ValueError):
  """What is wrong with one row; whoever reports it adds the place."""


class BadCell(BadRow):
  """What is wrong with one cell."""

  def __init__(self, column: str, found: object, wanted: str):
    super().__init__(f"column {column}: found {repr(found)[:80]}, wanted {wanted}")


Row = tuple[str, Mapping | BadRow]  # (place, columns); a row that can't be read at all is a BadRow


class Block(NamedTuple):
  """Rows that are read together: a row group of a parquet file, LINES lines of a jsonl file, a whole tfds set."""

  size: int  # in rows, at least 1
  read: Callable[[], Iterator[Row]]


def read(path: str | pathlib.Path, columns: tuple[str, ...] = (), patterns: tuple[str, ...] = ()) -> Iterator[Row]:
  """The rows of a file, of all files below a folder in the order of their names, or of a tfds folder's split `train`.

  `columns`: the only ones wanted of parquet files, (): all. `patterns`: see `files`. No row at all is an error.
  """
  for block in blocks(path, columns, patterns):
    yield from block.read()


def blocks(
  path: str | pathlib.Path, columns: tuple[str, ...] = (), patterns: tuple[str, ...] = (), need: str = ""
) -> Iterator[Block]:
  """The same, block by block and unread. `need`: a column that each parquet file must have."""
  empty = True
  for file in files(path, patterns):
    for block in _BLOCKS[file.suffix](file, columns, need):
      empty = False
      yield block
  if empty:
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
def _parquet(path: pathlib.Path):
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


def _row_groups(path: pathlib.Path, columns: tuple[str, ...], need: str) -> Iterator[Block]:
  with _parquet(path) as table:
    names = table.schema_arrow.names
    sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
  if need and need not in names:
    raise InputError(f"{path}: column {need} is missing, found {', '.join(names)}")
  wanted = [name for name in names if not columns or name in columns]
  first = 0
  for group, size in enumerate(sizes):
    if size:
      yield Block(size, functools.partial(_row_group, path, group, first, wanted))
    first += size


def _row_group(path: pathlib.Path, group: int, first: int, wanted: list[str]) -> Iterator[Row]:
  with _parquet(path) as table:
    batches = table.iter_batches(256, row_groups=[group], columns=wanted)
    found = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
    yield from ((f"{path}: row {number}", row) for number, row in enumerate(found, first))


def _line_blocks(path: pathlib.Path, columns: tuple[str, ...], need: str) -> Iterator[Block]:
  start = first = 0
  for lines in _lines(path):
    if size := sum(not line.isspace() for line in lines):  # a blank line is no row
      yield Block(size, functools.partial(_line_rows, path, start, first))
    start, first = start + sum(map(len, lines)), first + len(lines)


def _line_rows(path: pathlib.Path, start: int, first: int) -> Iterator[Row]:
  for number, line in enumerate(next(_lines(path, start)), first + 1):
    if not line.isspace():
      yield f"{path}:{number}", _json_row(line, "utf-8-sig" if number == 1 else "utf-8")


def _lines(path: pathlib.Path, start: int = 0) -> Iterator[list[bytes]]:
  """The lines from a byte on, LINES at a time."""
  try:
    with open(path, "rb") as file:
      file.seek(start)
      while lines := list(itertools.islice(file, LINES)):
        yield lines
  except OSError as error:
    raise InputError(f"{path}: not a readable file ({error.strerror}); correct the path") from None


def _json_row(line: bytes, encoding: str) -> Mapping | BadRow:
  try:
    row = parse(line.decode(encoding))
  except UnicodeDecodeError as error:
    return BadRow(f"not UTF-8 (byte {error.start} of the line)")
  except ValueError as error:
    cut = "" if line.endswith(b"\n") else ", and the file ends here: cut off?"
    return BadRow(f"no JSON ({error}){cut}")
  return row if isinstance(row, dict) else BadRow(f"found {repr(row)[:80]}, wanted a JSON object")


_TFDS = "dataset_info.json"


def _tfds_block(path: pathlib.Path, columns: tuple[str, ...], need: str) -> Iterator[Block]:
  folder, package = path.parent, tfds()
  try:
    source = package.builder_from_directory(folder).as_data_source(split="train")
    found = [(f"{folder}: row {number}", _plain(source[number])) for number in range(len(source))]
  except Exception as error:  # tfds, protobuf and ArrayRecord each have their own
    reason = str(error).strip().partition("\n")[0]
    raise InputError(f"{folder}: no readable tfds data set with a split train as ArrayRecord ({reason})") from None
  if found:
    yield Block(len(found), lambda: iter(found))


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


_BLOCKS: Mapping[str, Callable[[pathlib.Path, tuple[str, ...], str], Iterator[Block]]] = {
  ".parquet": _row_groups,
  ".jsonl": _line_blocks,
  ".json": _tfds_block,
}
