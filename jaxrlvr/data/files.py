"""Reads rows, each with its place, from parquet, jsonl, json and csv files, folders of these, and tfds data sets."""

from __future__ import annotations

import contextlib
import csv
import fnmatch
import functools
import json
import logging
import pathlib
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from jaxrlvr.base.errors import InputError

_LOG = logging.getLogger(__name__)
BLOCK_LINES = 1024  # lines of a jsonl file that are read together, like a row group of a parquet file
MAX_LINE_BYTES = 1 << 26  # of a line of a jsonl file and of a cell of a csv file
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
# A folder's data files are those of the first of these groups of which it holds any.
_SUFFIX_GROUPS = ((".parquet", ".jsonl"), (".csv",), (".json",))
_BATCH_ROWS = 256  # rows of a row group that are held as Python values at a time
# Splits by the words in names of files and folders.
_SPLITS = {
  **dict.fromkeys(("train", "training"), "train"),
  **dict.fromkeys(("test", "testing"), "test"),
  **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
}
ALL = "all"  # as the name of a split: every file
TRAINING = ("train",)  # splits to prefer for training where none is named, in this order
HELD_OUT = ("test", "validation")  # splits to prefer for evaluation
_TFDS_INFO = "dataset_info.json"  # the file that a tfds folder holds, beside features.json


def is_split(word: str) -> bool:
  """Returns whether a word is a usual name of a split, as train, test, validation, dev or eval, or ALL."""
  return word.lower() in _SPLITS or word == ALL


def is_training(word: str) -> bool:
  """Returns whether a word is a usual name of the split train."""
  return _SPLITS.get(word.lower()) == "train"


class BadRow(ValueError):
  """Raised, or yielded in the place of a row, for a row that can't be used.

  Its message says why; the place of the row is added by the code that reports it.
  """


class BadCell(BadRow):
  """A BadRow for one cell.

  column: its name. cell: its value, which the message shows. expected: what would be right, such as "a text".
  """

  def __init__(self, column: str, cell: object, expected: str):
    super().__init__(f"column {column}: found {repr(cell)[:80]}, wanted {expected}")


# (place, cells by column, or the BadRow of a row that can't be read). The place is `FILE:LINE`, lines from 1, for jsonl
# and csv, and `FILE: row NUMBER`, rows from 0, for other files. Cells are Python values; those of csv are text.
Row = tuple[str, Mapping | BadRow]


class Block(NamedTuple):
  """Rows that are read together: a row group of a parquet file, BLOCK_LINES lines of a jsonl file, or a whole file."""

  size: int  # number of rows, at least 1
  read: Callable[[], Iterator[Row]]  # reads the rows anew at each call


class Split(NamedTuple):
  """Which split of a source to read.

  `name`: train, test, validation, another word with which names of files or folders begin, or ALL for every file.
  "": the first of `prefer` that there is, if the source has `train` and other splits, else every file.
  """

  name: str = ""
  prefer: Sequence[str] = TRAINING  # TRAINING, which is train, or HELD_OUT, which is test, else validation
  key: str = "split"  # the config key of `name`, for messages


def read(
  path: str | pathlib.Path, columns: tuple[str, ...] = (), patterns: tuple[str, ...] = (), split: Split | None = None
) -> Iterator[Row]:
  """Yields the rows of a local file, of all data files in and below a folder by name, or of a tfds folder.

  A row is a pair: its place, `FILE:LINE` or `FILE: row NUMBER`, for messages, and a mapping from columns to cells. A
  row that can't be read has a BadRow in the place of the mapping.
  columns: columns to read of parquet files, () for all; other files are read whole. patterns, split: which files of a
  folder to read; see `files`. Raises InputError where a file can't be read, and where there is no row at all.
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
  """Yields the blocks of rows of a source in the order of `read`; parquet and jsonl files are read block by block.

  need: a column without which a parquet file raises InputError; "": none. path, columns, patterns, split and errors are
  those of `read`.
  """
  split = split or Split()
  is_empty = True
  for file in files(path, patterns, split):
    if file.name == _TFDS_INFO:
      blocks_of_file = _tfds_block(file, split)
    else:
      blocks_of_file = _BLOCKS[file.suffix](file, columns, need)
    for block in blocks_of_file:
      is_empty = False
      yield block
  if is_empty:
    raise InputError(f"{path}: found 0 rows, wanted at least 1")


def files(path: str | pathlib.Path, patterns: tuple[str, ...] = (), split: Split | None = None) -> list[pathlib.Path]:
  """Returns the data files of a local path, sorted.

  A file gives itself, and a tfds folder gives its dataset_info.json. Any other folder gives the files in and below it
  that are parquet and jsonl, or if there are none csv, or else json; hidden ones are left out.
  patterns: shell patterns such as `data/*.parquet`; only files of a folder whose path ends like one are taken. ():
  all. split: only files of a folder whose names or folders say this split are taken. If it names none, and there are
  files of `train` and of other splits, those of the first preferred split are taken, and a warning says so.
  Raises InputError where no file is left, and for a file of another kind.
  """
  path, split = pathlib.Path(path), split or Split()
  if not _is_folder(path):
    _check_file(path)
    if split.name not in ("", ALL):
      raise InputError(f"{split.key} = {split.name!r} has no effect: {path} is one file; clear it")
    return [path]
  if (path / _TFDS_INFO).is_file() and (path / "features.json").is_file():
    return [path / _TFDS_INFO]
  data_files = _data_files(path, patterns)
  if not data_files:
    expected = " or ".join(patterns or (f"*{suffix}" for suffix in SUFFIXES))
    raise InputError(f"{path}: holds no file like {expected}, and is no tfds data set; correct the path")
  return _files_of_split(path, data_files, split)


def splits_of(folder: pathlib.Path) -> set[str]:
  """Returns the splits, of train, test and validation, that names of a folder's data files and folders say."""
  return {_split_of_file(file, folder) for file in files(folder, split=Split(ALL))} - {""}


def _data_files(folder: pathlib.Path, patterns: tuple[str, ...]) -> list[pathlib.Path]:
  """Returns the files in and below a folder of the first group of _SUFFIX_GROUPS that it holds; see `files`."""
  candidates = []
  for file in sorted(folder.rglob("*")):
    is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    if file.suffix in SUFFIXES and file.is_file() and not is_hidden and _fits(file, patterns):
      candidates.append(file)
  for suffixes in _SUFFIX_GROUPS:
    of_group = [file for file in candidates if file.suffix in suffixes]
    if of_group:
      return of_group
  return []


def _fits(file: pathlib.Path, patterns: tuple[str, ...]) -> bool:
  """Returns whether the path of the file ends like one of the patterns, or there are none."""
  path = file.absolute().as_posix()
  return not patterns or any(fnmatch.fnmatch(path, f"*/{pattern}") for pattern in patterns)


def _is_folder(path: pathlib.Path) -> bool:
  """Returns whether the path is a folder."""
  try:
    return path.is_dir()
  except OSError:  # a name that is too long
    return False


def _check_file(path: pathlib.Path) -> None:
  """Raises InputError for a name with another ending than SUFFIXES, and for a path that is no regular file."""
  if path.suffix not in SUFFIXES:
    is_bare_name = len(path.parts) == 1 and not path.suffix
    hint = "; a data set of the Hugging Face hub is named ORG/NAME" if is_bare_name else ""
    raise InputError(
      f"{path}: is no folder, and its name ends in none of {', '.join(SUFFIXES)}; correct the path{hint}"[:1000]
    )
  try:
    mode = path.stat().st_mode
  except FileNotFoundError:
    return  # the code that opens the file reports this
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", "") or error
    raise InputError(f"{str(path)[:200]}: not a readable file ({reason}); correct the path") from None
  if not stat.S_ISREG(mode):
    raise InputError(f"{path}: is no regular file (a pipe, a device or a socket); write its content to a file")


def _split_of_file(file: pathlib.Path, folder: pathlib.Path) -> str:
  """Returns the split that a file's name says, else the name of the nearest folder below `folder` that says any.

  The splits are train, test and validation. Returns "" where no name says a split, or the name says several.
  """
  for part in reversed((*file.relative_to(folder).parts[:-1], file.stem)):
    words = re.split(r"[\W_\d]+", part.lower())
    splits = {_SPLITS[word] for word in words if word in _SPLITS}
    if splits:
      return splits.pop() if len(splits) == 1 else ""
  return ""


def _files_of_split(folder: pathlib.Path, data_files: list[pathlib.Path], split: Split) -> list[pathlib.Path]:
  """Returns those of a folder's data files that belong to the split. Raises InputError where a named one has none."""
  if split.name == ALL:
    return data_files
  split_of = {file: _split_of_file(file, folder) for file in data_files}
  splits = sorted(set(split_of.values()) - {""})
  if split.name:
    of_split = _files_of_named_split(folder, split_of, split.name)
    if not of_split:
      raise InputError(
        f"{split.key} = {split.name!r}: {folder} holds no such files, but {', '.join(splits) or 'no splits at all'} "
        f"(as {data_files[0].relative_to(folder)}); name one of these, or clear it"
      )
    return of_split
  preferred = next((name for name in split.prefer if name in splits), "")
  if "train" not in splits or len(splits) == 1 or not preferred:
    return data_files
  of_split = [file for file, name in split_of.items() if name == preferred]
  _LOG.warning(
    "%s: holds files of the splits %s; read is %s, %d of %d files (%s chooses another, or %s)",
    folder,
    ", ".join(splits),
    preferred,
    len(of_split),
    len(data_files),
    split.key,
    ALL,
  )
  return of_split


def _files_of_named_split(folder: pathlib.Path, split_of: Mapping[pathlib.Path, str], name: str) -> list[pathlib.Path]:
  """Returns the files of a split, or, for a name that is no split of ours, those with a name that begins with it.

  split_of: the split of each file.
  """
  split = _SPLITS.get(name.lower(), name)
  begins_with_name = re.compile(re.escape(name) + r"(?![^\W_])", re.IGNORECASE)
  of_split = []
  for file, split_of_file in split_of.items():
    parts = file.relative_to(folder).parts
    if split_of_file == split or any(begins_with_name.match(part) for part in parts):
      of_split.append(file)
  return of_split


def parse_json(text: str) -> object:
  """Returns the value of JSON text. Raises ValueError whatever is wrong with it, too deep nesting included."""
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
  columns_to_read = [name for name in names if not columns or name in columns]
  first = 0
  for group, size in enumerate(sizes):
    if size:
      yield Block(size, functools.partial(_row_group, path, group, first, columns_to_read))
    first += size


def _row_group(path: pathlib.Path, group: int, first: int, columns: list[str]) -> Iterator[Row]:
  """Yields the rows of a row group, whose first row has the number `first` in the file."""
  number = first
  with _parquet(path) as table:
    for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
      for cells in batch.to_pylist():
        yield f"{path}: row {number}", cells
        number += 1


def _line_blocks(path: pathlib.Path, columns: tuple[str, ...], need: str) -> Iterator[Block]:
  """Yields the blocks of lines of a jsonl file."""
  first_byte, first_line = 0, 1
  for lines in _lines(path):
    size = sum(not line.isspace() for line in lines)  # a blank line is no row
    if size:
      yield Block(size, functools.partial(_line_rows, path, first_byte, first_line))
    first_byte += sum(map(len, lines))
    first_line += len(lines)


def _line_rows(path: pathlib.Path, first_byte: int, first_line: int) -> Iterator[Row]:
  """Yields the rows of the block of lines that begins at a byte; `first_line` is the number of its first line."""
  for number, line in enumerate(next(_lines(path, first_byte)), first_line):
    if not line.isspace():
      yield f"{path}:{number}", _json_row(line, "utf-8-sig" if number == 1 else "utf-8")


def _lines(path: pathlib.Path, first_byte: int = 0) -> Iterator[list[bytes]]:
  """Yields the lines of a file from a byte on, BLOCK_LINES at a time, fewer where they are long."""
  try:
    with open(path, "rb") as file:
      file.seek(first_byte)
      while lines := list(_next_lines(path, file)):
        yield lines
  except OSError as error:
    raise InputError(f"{path}: not a readable file ({error.strerror}); correct the path") from None


def _next_lines(path: pathlib.Path, file: BinaryIO) -> Iterator[bytes]:
  """Yields up to BLOCK_LINES lines, until they hold MAX_LINE_BYTES. Raises InputError for a line longer than that."""
  size = 0
  for _ in range(BLOCK_LINES):
    first_byte = file.tell()
    line = file.readline(MAX_LINE_BYTES + 1)
    if len(line) > MAX_LINE_BYTES:
      raise InputError(
        f"{path}: the line at byte {first_byte} is longer than {MAX_LINE_BYTES >> 20} MiB; is it JSON, a row a line?"
      )
    if not line:
      return
    yield line
    size += len(line)
    if size > MAX_LINE_BYTES:
      return


def _json_row(line: bytes, encoding: str) -> Mapping | BadRow:
  """Returns the JSON object in a line, or the BadRow of a line that holds none."""
  try:
    row = parse_json(line.decode(encoding))
  except UnicodeDecodeError as error:
    return BadRow(f"not UTF-8 (byte {error.start} of the line)")
  except ValueError as error:
    hint = "" if line.endswith(b"\n") else ", and the file ends here: cut off?"
    return BadRow(f"no JSON ({error}){hint}")
  if not isinstance(row, dict):
    return BadRow(f"found {repr(row)[:80]}, wanted a JSON object")
  return row


def _json_blocks(path: pathlib.Path, columns: tuple[str, ...], need: str) -> Iterator[Block]:
  """Yields the blocks of a JSON file: a list of objects, an object with one such list under a key, or jsonl."""
  try:
    content = path.read_bytes()
  except OSError as error:
    raise InputError(f"{path}: not a readable file ({error.strerror}); correct the path") from None
  try:
    value: Any = parse_json(content.decode("utf-8-sig"))
  except ValueError as error:
    first_line = content.partition(b"\n")[0]
    if isinstance(_json_row(first_line, "utf-8-sig"), dict):
      yield from _line_blocks(path, columns, need)
      return
    raise InputError(f"{path}: no JSON ({str(error)[:200]}); correct the file") from None
  candidates = value.values() if isinstance(value, dict) else [value]
  lists = [candidate for candidate in candidates if _is_list_of_objects(candidate)]
  if len(lists) != 1:
    raise InputError(
      f"{path}: found {len(lists)} lists of objects, wanted one, or a row a line; write the rows as a list of objects"
    )
  rows = [(f"{path}: row {number}", cells) for number, cells in enumerate(lists[0])]
  yield Block(len(rows), lambda: iter(rows))


def _is_list_of_objects(value: object) -> bool:
  """Returns whether a JSON value is a list, not empty, of objects."""
  return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _csv_block(path: pathlib.Path, columns: tuple[str, ...], need: str) -> Iterator[Block]:
  """Yields the block of a csv file, whose first line names the columns; every cell is text."""
  csv.field_size_limit(MAX_LINE_BYTES)
  line, rows = 1, []
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      reader = csv.DictReader(file, strict=True)
      names = reader.fieldnames or []
      if len(set(names)) < len(names):
        raise InputError(f"{path}: two columns have one name ({', '.join(names)[:200]}); rename one")
      if len(names) == 1 and re.search("[;\t]", names[0]):
        raise InputError(f"{path}: its first line names one column, {names[0][:200]!r}; separate the cells by commas")
      for cells in reader:
        line = reader.line_num
        rows.append((f"{path}:{line}", _csv_row(cells, len(names))))
  except FileNotFoundError:
    raise InputError(f"{path}: no such file; correct the path") from None
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    reason = getattr(error, "strerror", "") or f"{error}, behind line {line}"
    raise InputError(f"{path}: not a readable csv file in UTF-8 ({reason}); correct it") from None
  if rows:
    yield Block(len(rows), lambda: iter(rows))


def _csv_row(cells: dict, columns: int) -> Mapping | BadRow:
  """Returns the cells of a line as csv.DictReader reads them, or a BadRow if they are not as many as the columns."""
  if None in cells:  # the key of the cells that have no column
    return BadRow(f"found more cells than the {columns} names of the first line")
  if None in cells.values():  # the cell of a column that has none
    return BadRow(f"found fewer cells than the {columns} names of the first line")
  return cells


def _tfds_block(path: pathlib.Path, split: Split) -> Iterator[Block]:
  """Yields one block with all rows of the split of a tfds folder, if there are any. path: its _TFDS_INFO."""
  folder, package = path.parent, tfds()
  rows = []
  try:
    builder = package.builder_from_directory(folder)
    for name in _tfds_splits(folder, list(builder.info.splits), split):
      source = builder.as_data_source(split=name)
      for number in range(len(source)):
        rows.append((f"{folder}: row {number}", _plain(source[number])))
  except InputError:
    raise
  except Exception as error:  # tfds, protobuf and ArrayRecord each have their own
    reason = str(error).strip().partition("\n")[0]
    raise InputError(f"{folder}: no readable tfds data set as ArrayRecord ({reason})") from None
  if rows:
    yield Block(len(rows), lambda: iter(rows))


def _tfds_splits(folder: pathlib.Path, splits: list[str], split: Split) -> list[str]:
  """Returns the names to read of a tfds data set's splits, and warns if others are left out that nobody named."""
  if split.name == ALL:
    return splits
  preferred = next((name for name in split.prefer if name in splits), "train")
  chosen = split.name or preferred
  if chosen not in splits:
    raise InputError(
      f"{split.key} = {split.name!r}: {folder} holds the splits {', '.join(splits) or 'none'}; name one of these"
    )
  if not split.name and len(splits) > 1:
    _LOG.warning("%s: of the splits %s read is %s (%s)", folder, ", ".join(splits), chosen, split.key)
  return [chosen]


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
