"""Reads rows, each with its place, from parquet, jsonl, json and csv files, folders of these, and tfds data sets."""

from __future__ import annotations

import contextlib
import csv
import fnmatch
import functools
import itertools
import json
import logging
import pathlib
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrlvr.base.errors import InputError

_LOG = logging.getLogger(__name__)
LINES = 1024  # lines of a jsonl file that are read together, like a row group of a parquet file
LONGEST = 1 << 26  # most bytes of a line of a jsonl file and of a cell of a csv file
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
_OF_FOLDERS = (
  (".parquet", ".jsonl"),
  (".csv",),
  (".json",),
)  # a folder's files are those of the first group that it holds any of
# Splits by the words in names of files and folders.
_SPLITS = {
  **dict.fromkeys(("train", "training"), "train"),
  **dict.fromkeys(("test", "testing"), "test"),
  **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
}
ALL = "all"  # as a split: every file
TRAINING = ("train",)  # splits to prefer where none is named, in this order
HELD_OUT = ("test", "validation")


class BadRow(ValueError):
  """A row that can't be used, and why; who reports it adds the place."""


class BadCell(BadRow):
  """A cell that can't be used."""

  def __init__(self, column: str, found: object, wanted: str):
    super().__init__(f"column {column}: found {repr(found)[:80]}, wanted {wanted}")


Row = tuple[str, Mapping | BadRow]  # (place, cell by column, or the BadRow of a row that can't be read)


class Block(NamedTuple):
  """Rows that are read together: a row group of a parquet file, LINES lines of a jsonl file, or a whole source."""

  size: int  # number of rows, at least 1
  read: Callable[[], Iterator[Row]]


class Split(NamedTuple):
  """Which split of a source to read."""

  name: str = ""  # a split, ALL, or "": if the names of files tell several splits, the first of `prefer`
  prefer: Sequence[str] = TRAINING
  key: str = "split"  # the config key of `name`, for messages


def read(
  path: str | pathlib.Path, columns: tuple[str, ...] = (), patterns: tuple[str, ...] = (), split: Split | None = None
) -> Iterator[Row]:
  """Yields the rows of a file, of all files below a folder in the order of their names, or of a tfds folder.

  columns: columns to read of parquet files; (): all. patterns, split: as in `files`. Raises InputError where a source
  can't be read or has no row.
  """
  for block in blocks(path, columns, patterns, split=split):
    yield from block.read()


def blocks(
  path: str | pathlib.Path,
  columns: tuple[str, ...] = (),
  patterns: tuple[str, ...] = (),
  need: str = "",
  split: Split | None = None,
) -> Iterator[Block]:
  """Yields the blocks of rows that `read` reads, each with a function that reads it.

  need: a column that each parquet file must have; "": none.
  """
  split = split or Split()
  empty = True
  for file in files(path, patterns, split):
    of_file = _tfds_block(file, split) if file.name == _TFDS else _BLOCKS[file.suffix](file, columns, need)
    for block in of_file:
      empty = False
      yield block
  if empty:
    raise InputError(f"{path}: found 0 rows, wanted at least 1")


def files(path: str | pathlib.Path, patterns: tuple[str, ...] = (), split: Split | None = None) -> list[pathlib.Path]:
  """Returns the data files of a path: the file itself, the files below a folder, or a tfds set's dataset_info.json.

  patterns: only files of a folder whose path ends like one of these; (): all. split: only files of a folder whose names
  tell this split; where no split is named and there are files of `train` and others, those of the first preferred split
  are returned, and a warning says so. Raises InputError where no file is left.
  """
  path, split = pathlib.Path(path), split or Split()
  if _is_folder(path) and (path / _TFDS).is_file() and (path / "features.json").is_file():
    return [path / _TFDS]
  if not _is_folder(path):
    _check_file(path)
    if split.name not in ("", ALL):
      raise InputError(f"{split.key} = {split.name!r} has no effect: {path} is one file; clear it")
    return [path]
  below = (file for file in sorted(path.rglob("*")) if file.suffix in SUFFIXES and file.is_file())
  found = [file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]
  if patterns:
    found = [file for file in found if any(fnmatch.fnmatch(file.absolute().as_posix(), f"*/{p}") for p in patterns)]
  by_kind = ([file for file in found if file.suffix in kinds] for kinds in _OF_FOLDERS)
  found = next(filter(None, by_kind), [])
  if not found:
    like = " or ".join(patterns or (f"*{kind}" for kind in SUFFIXES))
    raise InputError(f"{path}: holds no file like {like}, and is no tfds data set; correct the path")
  return _of_split(path, found, split)


def _is_folder(path: pathlib.Path) -> bool:
  """Returns whether the path is a folder."""
  try:
    return path.is_dir()
  except OSError:  # a name that is too long
    return False


def _check_file(path: pathlib.Path) -> None:
  """Raises InputError for a name with another ending than SUFFIXES, and for an path that is no regular file."""
  if path.suffix not in SUFFIXES:
    near = "; a data set of the Hugging Face hub is named ORG/NAME" if len(path.parts) == 1 and not path.suffix else ""
    raise InputError(
      f"{path}: is no folder, and its name ends in none of {', '.join(SUFFIXES)}; correct the path{near}"[:1000]
    )
  try:
    mode = path.stat().st_mode
  except FileNotFoundError:
    return  # whoever opens it reports this
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", "") or error
    raise InputError(f"{str(path)[:200]}: not a readable file ({reason}); correct the path") from None
  if not stat.S_ISREG(mode):
    raise InputError(f"{path}: is no regular file (a pipe, a device or a socket); write its content to a file")


def split_of_file(file: pathlib.Path, folder: pathlib.Path) -> str:
  """Returns the split that a file's name tells, else the nearest folder's name; "" where they tell none or several."""
  for part in reversed((*file.relative_to(folder).parts[:-1], file.stem)):
    splits = {_SPLITS[word] for word in re.split(r"[\W_\d]+", part.lower()) if word in _SPLITS}
    if splits:
      return splits.pop() if len(splits) == 1 else ""
  return ""


def _of_split(folder: pathlib.Path, found: list[pathlib.Path], split: Split) -> list[pathlib.Path]:
  """Returns the files of the split, as `files` says. Raises InputError where there are none of a named split."""
  by_file = {file: split_of_file(file, folder) for file in found}
  there = sorted(set(by_file.values()) - {""})
  if split.name == ALL:
    return found
  if split.name:
    wanted = _SPLITS.get(split.name.lower(), split.name)
    begins = re.compile(re.escape(split.name) + r"(?![^\W_])", re.IGNORECASE)  # a split of another name
    chosen = [
      file
      for file, name in by_file.items()
      if name == wanted or any(begins.match(part) for part in file.relative_to(folder).parts)
    ]
    if not chosen:
      raise InputError(
        f"{split.key} = {split.name!r}: {folder} holds no such files, but {', '.join(there) or 'no splits at all'} "
        f"(as {found[0].relative_to(folder)}); name one of these, or clear it"
      )
    return chosen
  wanted = next((name for name in split.prefer if name in there), "")
  if "train" not in there or len(there) < 2 or not wanted:
    return found
  chosen = [file for file, name in by_file.items() if name == wanted]
  _LOG.warning(
    "%s: holds files of the splits %s; read is %s, %d of %d files (%s chooses another, or %s)",
    folder,
    ", ".join(there),
    wanted,
    len(chosen),
    len(found),
    split.key,
    ALL,
  )
  return chosen


def parse_json(text: str) -> object:
  """Returns the value of JSON text. Raises ValueError whatever is wrong with it."""
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError("nested too deeply") from None


@contextlib.contextmanager
def _parquet(path: pathlib.Path):
  """Opens a parquet file. Raises InputError for whatever is wrong with it, on opening or while it is read."""
  import pyarrow
  import pyarrow.parquet

  try:
    with open(path, "rb") as file:
      yield pyarrow.parquet.ParquetFile(file)
  except FileNotFoundError:
    raise InputError(f"{path}: no such file; correct the path") from None
  except (OSError, pyarrow.ArrowException, ValueError, OverflowError) as error:  # ValueError: cells that are no UTF-8
    reason = str(error).partition("\n")[0][:200]
    raise InputError(f"{path}: not a readable parquet file ({reason}); fetch it again") from None


def _row_groups(path: pathlib.Path, columns: tuple[str, ...], need: str) -> Iterator[Block]:
  """Yields the row groups of a parquet file."""
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
  """Yields the blocks of lines of a jsonl file."""
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
  """Yields the lines from byte `start` on, LINES at a time, fewer where they are long."""
  try:
    with open(path, "rb") as file:
      file.seek(start)
      while lines := list(_next_lines(path, file)):
        yield lines
  except OSError as error:
    raise InputError(f"{path}: not a readable file ({error.strerror}); correct the path") from None


def _next_lines(path: pathlib.Path, file) -> Iterator[bytes]:
  size = 0
  for _ in range(LINES):
    begin = file.tell()
    line = file.readline(LONGEST + 1)
    if len(line) > LONGEST:
      raise InputError(
        f"{path}: the line at byte {begin} is longer than {LONGEST >> 20} MiB; is it JSON, a row a line?"
      )
    if not line:
      return
    yield line
    size += len(line)
    if size > LONGEST:
      return


def _json_row(line: bytes, encoding: str) -> Mapping | BadRow:
  """Returns the JSON object in a line, or the BadRow of a line that holds none."""
  try:
    row = parse_json(line.decode(encoding))
  except UnicodeDecodeError as error:
    return BadRow(f"not UTF-8 (byte {error.start} of the line)")
  except ValueError as error:
    cut = "" if line.endswith(b"\n") else ", and the file ends here: cut off?"
    return BadRow(f"no JSON ({error}){cut}")
  return row if isinstance(row, dict) else BadRow(f"found {repr(row)[:80]}, wanted a JSON object")


def _json_blocks(path: pathlib.Path, columns: tuple[str, ...], need: str) -> Iterator[Block]:
  """Yields the blocks of a JSON file: a list of objects, an object with one such list under a key, or jsonl."""
  try:
    content = path.read_bytes()
  except OSError as error:
    raise InputError(f"{path}: not a readable file ({error.strerror}); correct the path") from None
  try:
    whole = parse_json(content.decode("utf-8-sig"))
  except ValueError as error:
    first = content.partition(b"\n")[0]
    if isinstance(_json_row(first, "utf-8-sig"), dict):
      yield from _line_blocks(path, columns, need)
      return
    raise InputError(f"{path}: no JSON ({str(error)[:200]}); correct the file") from None
  values = whole.values() if isinstance(whole, dict) else [whole]
  lists = [v for v in values if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
  if len(lists) != 1:
    raise InputError(
      f"{path}: found {len(lists)} lists of objects, wanted one, or a row a line; write the rows as a list of objects"
    )
  (found,) = lists
  yield Block(len(found), lambda: ((f"{path}: row {number}", row) for number, row in enumerate(found)))


def _csv_block(path: pathlib.Path, columns: tuple[str, ...], need: str) -> Iterator[Block]:
  """Yields the block of a csv file, whose first line names the columns; every cell is text."""
  csv.field_size_limit(LONGEST)
  line, found = 1, []
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      reader = csv.DictReader(file, strict=True)
      names = reader.fieldnames or []
      if len(set(names)) < len(names):
        raise InputError(f"{path}: two columns have one name ({', '.join(names)[:200]}); rename one")
      for row in reader:
        line = reader.line_num
        fits = None not in row and None not in row.values()
        wrong = BadRow(
          f"found {'more' if None in row else 'fewer'} cells than the {len(names)} names of the first line"
        )
        found.append((f"{path}:{line}", row if fits else wrong))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    reason = getattr(error, "strerror", "") or f"{error}, behind line {line}"
    raise InputError(f"{path}: not a readable csv file in UTF-8 ({reason}); correct it") from None
  if found:
    yield Block(len(found), lambda: iter(found))


_TFDS = "dataset_info.json"


def _tfds_block(path: pathlib.Path, split: Split) -> Iterator[Block]:
  folder, package = path.parent, tfds()
  try:
    builder = package.builder_from_directory(folder)
    there = list(builder.info.splits)
    preferred = next((name for name in split.prefer if name in there), "train")
    wanted = split.name or preferred
    if wanted != ALL and wanted not in there:
      raise InputError(
        f"{split.key} = {split.name!r}: {folder} holds the splits {', '.join(there) or 'none'}; name one of these"
      )
    names = there if wanted == ALL else [wanted]
    if not split.name and len(there) > 1:
      _LOG.warning("%s: of the splits %s read is %s (%s)", folder, ", ".join(there), wanted, split.key)
    found = []
    for name in names:
      source = builder.as_data_source(split=name)
      found += [(f"{folder}: row {number}", _plain(source[number])) for number in range(len(source))]
  except InputError:
    raise
  except Exception as error:  # tfds, protobuf and ArrayRecord each have their own
    reason = str(error).strip().partition("\n")[0]
    raise InputError(f"{folder}: no readable tfds data set as ArrayRecord ({reason})") from None
  if found:
    yield Block(len(found), lambda: iter(found))


def tfds() -> Any:
  """Returns the package tensorflow-datasets, with its progress bars off. Raises InputError if it is not installed."""
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise InputError(f"a tfds data set needs a package ({error}); pip install 'jaxrlvr[tfds]'") from None
  tensorflow_datasets.disable_progress_bar()
  return tensorflow_datasets


def _plain(value: object) -> Any:
  """Returns a value with bytes as text, arrays as lists and numpy scalars as Python's."""
  value = value.tolist() if hasattr(value, "tolist") else value
  if isinstance(value, Mapping):
    return {key: _plain(part) for key, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(part) for part in value]
  return value.decode() if isinstance(value, bytes) else value


_BLOCKS: Mapping[str, Callable[[pathlib.Path, tuple[str, ...], str], Iterator[Block]]] = {
  ".parquet": _row_groups,
  ".jsonl": _line_blocks,
  ".json": _json_blocks,
  ".csv": _csv_block,
}
