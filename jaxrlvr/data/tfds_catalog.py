"""Data sets of TensorFlow Datasets by their names, prepared as ArrayRecord and read without TensorFlow."""

from __future__ import annotations

import contextlib
import importlib
import io
import socket
import urllib.request
from pathlib import Path
from typing import Any

from jaxrlvr.base.errors import InputError
from jaxrlvr.data.files import tfds

_PROBED_HOST = "storage.googleapis.com"  # where tfds looks first


def folder(name: str, split: str = "") -> str:
  """Returns the folder of a prepared data set of tfds; it is downloaded and prepared if it is not there yet.

  name: NAME, NAME/CONFIG or NAME:VERSION as tfds takes them. split: the one that is to be read, for messages. Sets lie
  in the folder that the environment variable TFDS_DATA_DIR names, else in ~/tensorflow_datasets. Raises InputError for
  a name that tfds lacks, where there is no network to download from, for a set that can't be made without TensorFlow,
  and for one that is prepared in another format than ArrayRecord.
  """
  package = tfds()
  builder = _builder(package, name)
  if not builder.is_prepared():
    _download(builder, name, split)
  return str(builder.data_dir)


def _builder(package: Any, name: str) -> Any:
  """Returns the builder of a data set. Raises InputError where tfds has none of this name."""
  _register(package, name.partition("/")[0].partition(":")[0])
  try:
    return package.builder(name, file_format="array_record")
  except Exception as error:  # tfds raises errors of many types for a name that it can't take
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    cure = "tfds.list_builders() lists the names"
    if "file format" in reason.lower():
      cure = (
        "the prepared copy can be read only with TensorFlow; set the environment variable TFDS_DATA_DIR to another "
        "folder, where it is prepared anew"
      )
    raise InputError(f"tfds:{name}: {reason}; {cure}") from None


def _register(package: Any, name: str) -> None:
  """Makes a data set known that lies in a folder of topics, which the package imports only with TensorFlow."""
  for file in Path(package.__file__).parent.glob(f"*/{name}/__init__.py"):
    with contextlib.suppress(ImportError):
      importlib.import_module(f"{package.__name__}.{file.parts[-3]}.{name}")


def _download(builder: Any, name: str, split: str) -> None:
  """Downloads and prepares a data set. Raises InputError where that fails."""
  source = f"tfds:{name}@{split}" if split else f"tfds:{name}"
  cure = (
    f"where there is a network, run `jaxrlvr prepare --config=base --workdir=runs/{builder.name} "
    f"--config.problems.source={source} --config.problems.count=0`, copy runs/{builder.name}/problems.jsonl here and "
    f"name it; or copy {builder.data_dir} from there"
  )
  if not _is_online():
    raise InputError(f"tfds:{name}: is not prepared in {builder.data_dir}, and there is no network; {cure}")
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
      builder.download_and_prepare()
  except Exception as error:  # of the network, of the data set's code, or as that needs TensorFlow
    reason = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    raise InputError(f"tfds:{name}: can't be prepared ({reason}); {cure}") from None


def _is_online() -> bool:
  """Returns whether a host can be reached by its name, or a proxy is set that may do so. tfds itself tries for long."""
  if urllib.request.getproxies():
    return True
  try:
    socket.getaddrinfo(_PROBED_HOST, 443)
  except OSError:
    return False
  return True
