"""What a user wrote, by name: `path.py:NAME`, `package.module:NAME`, or `given:NAME` for an object passed from Python.

Config keys take such a name in the place of a name in a table. A file is looked for in the working directory, then in
the folders that `search_in` was told. A module is imported as Python does, from the working directory too. NAME may
be an attribute of an object, as TASK.verify.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import cloudpickle

from jaxrlvr.base.errors import InputError

GIVEN = "given"  # as the module of a name: the object was passed from Python
_NAME = re.compile(r"(?P<module>[^:]+):(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")
_FILE_MODULE = "jaxrlvr_named_"  # begins the name of the module of a file that is named by its path
_folders: list[Path] = []  # where files are looked for behind the working directory
_given: dict[str, Any] = {}  # objects that were passed from Python, by name
_State = tuple[int, int]  # of a file: its time of change and its size
_loaded: dict[Path, tuple[dict[Path, _State], ModuleType]] = {}  # by file: it and its neighbours when run, its module
_neighbours: dict[Path, _State] = {}  # by file, of modules beside named files: their state when they were imported
_held: list[dict[str, ModuleType]] = []  # of each block of `held`: what it has loaded, by path as a name has it
_beside: list[str] = []  # folders of named files that `load_file` has put into sys.path


class Place(NamedTuple):
  """The parts of a name: what stands before and behind its colon."""

  module: str  # the path of a file, the dotted name of a module, or GIVEN
  name: str  # of the object in it

  @property
  def is_file(self) -> bool:
    """Property: whether the module is named by the path of its file, which ends in .py."""
    return self.module.endswith(".py")


def is_name(text: str) -> bool:
  """Returns whether a text has the form MODULE:NAME of a name, whether or not there is such an object."""
  return isinstance(text, str) and _NAME.fullmatch(text) is not None


def place_of(text: str) -> Place:
  """Splits a name such as "my.py:f" into its parts and returns these. Raises InputError for a text of another form."""
  match = _NAME.fullmatch(text)
  if not match:
    raise InputError(f"{text!r} is no name of an object; write path.py:NAME or package.module:NAME")
  return Place(match["module"], match["name"])


def search_in(folder: str | Path) -> None:
  """Has files also looked for in this folder, after the working directory and the folders that were added before.

  It holds for this process, until its end.
  """
  place = Path(folder).absolute()
  if place not in _folders:
    _folders.append(place)


def file_of(module: str) -> Path:
  """Looks for a Python file and returns its absolute path. module: a path; `~` stands for the home folder.

  A relative one is looked for in the working directory, then in the folders of `search_in`. Raises InputError, which
  names these places, where there is no such file.
  """
  path = Path(os.path.expanduser(module))
  candidates = [path] if path.is_absolute() else [folder / path for folder in (Path.cwd(), *_folders)]
  for candidate in candidates:
    if candidate.is_file():
      return candidate.resolve()
  raise InputError(f"{module}: no such file (looked for {', '.join(map(str, candidates))}); correct the path")


def load(text: str) -> Any:
  """Imports and returns the object that a name stands for.

  A file is run once as long as its text stays the same; modules beside it can be imported by it. Raises InputError,
  with the line, where the module can't be imported, and where it has no such object.
  """
  place = place_of(text)
  attributes = place.name.split(".")
  if place.module == GIVEN:
    if attributes[0] not in _given:
      raise InputError(f"{text}: is an object that was passed from Python; pass it again, under the name {place.name}")
    value: Any = _given[attributes.pop(0)]
  elif place.is_file:
    value = load_file(place.module)
  else:
    value = _import(place.module, text)
  for attribute in attributes:
    if not hasattr(value, attribute):
      public = [name for name in dir(value) if not name.startswith("_")]
      similar = difflib.get_close_matches(attribute, public, 1)
      hint = f"; did you mean {similar[0]}?" if similar else f"; it has {', '.join(public)[:200] or 'no names'}"
      raise InputError(f"{text}: there is no {attribute}{hint}")
    value = getattr(value, attribute)
  return value


def load_file(path: str) -> ModuleType:
  """Runs a Python file and returns its module. path: as in `file_of`.

  It is run again only when the file, or a module beside it that it imports, has changed. Files in different folders
  each import what lies beside them. In a block of `held` it is run once. Raises InputError, with the line, where it
  raises an error.
  """
  if not _held:
    return _run_file(path)
  modules = _held[-1]
  if path not in modules:
    modules[path] = _run_file(path)
  return modules[path]


@contextlib.contextmanager
def held() -> Iterator[None]:
  """Keeps each file that is loaded in the block as it was then, whatever becomes of it: a run has one code."""
  modules: dict[str, ModuleType] = {}
  _held.append(modules)
  try:
    yield
  finally:
    _held[:] = [one for one in _held if one is not modules]  # blocks need not end in the order of their beginning


def _run_file(path: str) -> ModuleType:
  """Does what `load_file` does outside of `held`."""
  file = file_of(path)
  if file in _loaded and _loaded[file][0] == _states(_loaded[file][0]):
    return _loaded[file][1]
  states = _states(_files(file, file.parent))
  digest = hashlib.blake2b(bytes(file), digest_size=4).hexdigest()  # of the path: two files may have one name
  name = f"{_FILE_MODULE}{file.stem}_{digest}"
  spec = importlib.util.spec_from_file_location(name, file)
  module = importlib.util.module_from_spec(spec)
  _put_beside(file, states)
  sys.modules[name] = module  # dataclasses and pickles in the file look their module up
  try:
    spec.loader.exec_module(module)
  except BaseException as error:
    del sys.modules[name]
    if not isinstance(error, (Exception, SystemExit)) or isinstance(error, InputError):
      raise
    raise InputError(f"{path} can't be run: {error_line(error, file)}") from error
  _loaded[file] = (states, module)
  return module


def _states(files: Iterable[Path]) -> dict[Path, _State]:
  """Returns the state of each file; (0, 0) of one that is gone."""
  states = {}
  for file in files:
    stat = file.stat() if file.is_file() else None
    states[file] = (stat.st_mtime_ns, stat.st_size) if stat else (0, 0)
  return states


def _put_beside(file: Path, states: Mapping[Path, _State]) -> None:
  """Has Python import the modules beside a file that is about to run, before those beside other named files.

  states: of the file and these modules. One that was imported from elsewhere, or has changed since, is imported again.
  """
  folder = str(file.parent)
  if folder not in sys.path or folder in _beside:
    others = [one for one in sys.path if one != folder]
    others.insert(next((place for place, one in enumerate(others) if one in _beside), len(others)), folder)
    sys.path[:] = others
    _beside[:] = dict.fromkeys([*_beside, folder])
  importlib.invalidate_caches()  # a module may be newer than what Python knows of its folder
  for path in set(states) - {file}:
    parts = path.relative_to(file.parent).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    imported = Path(getattr(sys.modules.get(name), "__file__", None) or "").resolve()
    is_other = imported != path and (imported in _neighbours or str(imported.parent) in _beside)
    if is_other or (imported == path and _neighbours.get(path, states[path]) != states[path]):
      del sys.modules[name]
    _neighbours[path] = states[path]


def _import(module: str, text: str) -> ModuleType:
  """Imports a module by its dotted name. Raises InputError where it can't."""
  if (here := str(Path.cwd())) not in sys.path:
    sys.path.append(here)  # behind all others, so that a file there hides no module of Python's own
  try:
    return importlib.import_module(module)
  except Exception as error:  # a module is the user's code, which may raise anything
    raise InputError(
      f"{text}: {module} can't be imported: {error_line(error)}; name an installed module, or a file as path.py:NAME"
    ) from error


def error_line(error: BaseException, file: Path | None = None) -> str:
  """Returns one line about an error of a user's code: its type and message, and the line of code that it came from.

  file: the file of the user's code, whose last line in the traceback is named; None: the last line of all.
  """
  frames = traceback.extract_tb(error.__traceback__)
  if file is not None:
    frames = [frame for frame in frames if Path(frame.filename) == file]
  frames = [frame for frame in frames if not frame.filename.startswith("<")]
  place = ""
  if isinstance(error, SyntaxError):
    place = f" ({error.filename}:{error.lineno})"
  elif frames:
    place = f" ({frames[-1].filename}:{frames[-1].lineno})"
  return f"{type(error).__name__}: {str(error)[:300]}{place}"


@contextlib.contextmanager
def given(objects: Mapping[str, Any]) -> Iterator[None]:
  """Makes objects known as `given:NAME` during the block. objects: by NAME, which must be an identifier."""
  before = dict(_given)
  _given.update(objects)
  try:
    yield
  finally:
    _given.clear()
    _given.update(before)


def given_now() -> dict[str, Any]:
  """Returns the objects that are known as `given:NAME` now, by NAME."""
  return dict(_given)


def name_of(value: Any, name: str) -> str:
  """Returns the name by which other processes find an object: package.module:NAME if it can be imported, else
  given:NAME.

  It can be imported if its module was loaded from a file, is not the script or notebook that runs, and holds it under
  `name`, an identifier.
  """
  module = sys.modules.get(getattr(value, "__module__", None) or "")
  is_importable = (
    module is not None
    and module.__name__ != "__main__"
    and not module.__name__.startswith(_FILE_MODULE)
    and bool(getattr(module, "__file__", None))
    and getattr(module, name, None) is value
  )
  return f"{module.__name__}:{name}" if is_importable else f"{GIVEN}:{name}"


SEARCH_VARIABLE = "JAXRLVR_SEARCH"  # environment of worker processes: folders of modules, as in PYTHONPATH
BESIDE_VARIABLE = "JAXRLVR_BESIDE"  # environment of worker processes: those that are there for files in them
GIVEN_VARIABLE = "JAXRLVR_GIVEN"  # environment of worker processes: a file that `environment` wrote


def environment(file: Path) -> dict[str, str]:
  """Returns variables by which another process that calls `adopt` finds the same modules and given objects.

  file: is written if there are given objects, by cloudpickle. Raises InputError for one that can't be pickled.
  """
  variables = {SEARCH_VARIABLE: os.pathsep.join(folder for folder in sys.path if folder)}
  variables[BESIDE_VARIABLE] = os.pathsep.join(_beside)
  if _given:
    try:
      file.write_bytes(cloudpickle.dumps(_given))
    except Exception as error:
      raise InputError(f"{', '.join(_given)}: can't be sent to a worker process: {error_line(error)}") from error
    variables[GIVEN_VARIABLE] = str(file)
  return variables


def adopt() -> None:
  """Makes the modules and given objects of the process that set `environment` known in this one."""
  known = set(sys.path)
  _beside.extend(folder for folder in os.environ.get(BESIDE_VARIABLE, "").split(os.pathsep) if folder not in known)
  sys.path += [folder for folder in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if folder not in known]
  if GIVEN_VARIABLE in os.environ:
    _given.update(cloudpickle.loads(Path(os.environ[GIVEN_VARIABLE]).read_bytes()))


def absolute(text: str) -> str:
  """Returns the name with the absolute path of its file, for a process with another working directory.

  Names of modules and of given objects stay as they are. Raises InputError where there is no such file.
  """
  place = place_of(text)
  return f"{file_of(place.module)}:{place.name}" if place.is_file else text


def sources(text: str) -> list[str]:
  """Returns texts that stand for the code behind a name, so that a change of the code changes them.

  They are the source of its file and of each module beside it (for a module: in its package) that it imports, directly
  or not, each once. Of a given object they are those of `_texts_of_given`.
  """
  place = place_of(text)
  if place.module == GIVEN:
    return _texts_of_given(load(text), set())
  if place.is_file:
    file = file_of(place.module)
    return _texts(file, file.parent)
  module = _import(place.module, text)
  if not getattr(module, "__file__", None):
    return [place.module]  # compiled into Python
  file = Path(module.__file__).resolve()
  root = file.parent
  for _ in place.module.split(".")[: -1 if file.stem != "__init__" else None]:
    root = root.parent
  return _texts(file, root, package=place.module.split(".")[0])


def source_of(function: Any) -> list[str]:
  """Returns the source of a function or a class; its byte code, or the name of its type, where it has no source."""
  try:
    return [inspect.getsource(function)]
  except (OSError, TypeError):  # it was typed in, or is compiled
    code = getattr(function, "__code__", None)
    return _texts_of_code(code) if code else [type(function).__qualname__]


def _texts_of_code(code: CodeType) -> list[str]:
  """Returns the byte code and the constants of a function, and of those in it."""
  inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
  texts = [code.co_code.hex(), repr(code.co_names)]
  texts.append(repr([constant for constant in code.co_consts if constant not in inner]))
  for one in inner:
    texts += _texts_of_code(one)
  return texts


def _names_in(code: CodeType) -> list[str]:
  """Returns the names of globals and attributes in the code of a function, and of those in it."""
  names = list(code.co_names)
  for constant in code.co_consts:
    if isinstance(constant, CodeType):
      names += _names_in(constant)
  return names


_PLAIN = (bool, int, float, str, bytes, type(None))  # types of values that a text says all about


def _texts_of_given(value: Any, known: set[int]) -> list[str]:
  """Returns texts that stand for a given object, so that a change of what it does changes them.

  Of a function they are its source, its defaults, the plain values that it has kept from around it, and the texts of
  the functions that it calls and that can't be imported; of another object the source of its class. known: ids of
  objects whose texts are there already; it gets those that follow.
  """
  if id(value) in known:
    return []
  known.add(id(value))
  if isinstance(value, functools.partial):
    arguments = [*value.args, *value.keywords.items()]
    return [*_texts_of_given(value.func, known), *(repr(one) for one in arguments if not callable(one))]
  value = getattr(value, "__func__", value)  # of a method
  code = getattr(value, "__code__", None)
  if code is None:
    return source_of(value if isinstance(value, type) else type(value))
  texts = source_of(value)
  kept = list(inspect.getclosurevars(value).nonlocals.values())
  texts += [repr(one) for one in [*kept, *(value.__defaults__ or ())] if isinstance(one, _PLAIN)]
  for one in [*kept, *(value.__globals__.get(name) for name in _names_in(code))]:
    if inspect.isfunction(one) and name_of(one, one.__name__).startswith(f"{GIVEN}:"):
      texts += _texts_of_given(one, known)
  return texts


def _texts(file: Path, root: Path, package: str = "") -> list[str]:
  """Returns the texts of `_files`, ordered by path."""
  known = _files(file, root, package)
  return [known[path] for path in sorted(known)]


def _files(file: Path, root: Path, package: str = "") -> dict[Path, str]:
  """Returns the text of a file and of all local modules that it imports, directly or not, by path.

  root: the folder that local modules are imported from. package: only modules of this package count; "": all in root.
  """
  known: dict[Path, str] = {}
  waiting = [file]
  while waiting:
    path = waiting.pop()
    if path in known or path.suffix != ".py":
      continue
    known[path] = path.read_text(errors="replace")
    waiting += _local_imports(known[path], path, root, package)
  return known


def _local_imports(text: str, file: Path, root: Path, package: str) -> list[Path]:
  """Returns the files below `root` that the import statements of a file name."""
  try:
    tree = ast.parse(text)
  except SyntaxError:
    return []
  files = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      modules = [(root, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      folder = file.parents[node.level - 1] if 0 < node.level <= len(file.parents) else root
      base = node.module or ""
      modules = [(folder, base), *((folder, f"{base}.{alias.name}".strip(".")) for alias in node.names)]
    else:
      continue
    for folder, module in modules:
      is_of_package = folder != root or not package or module.split(".")[0] == package
      if module and is_of_package:
        place = folder.joinpath(*module.split("."))
        files += [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]
  return files
