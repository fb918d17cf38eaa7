"""Keeps the notebooks of colab/: writes the address of this repository into them, and stores the outputs of a run.

python launch/notebooks.py                     # the buttons "Open in Colab", and REPOSITORY in the first cell
python launch/notebooks.py --run [NAME ...]    # runs them: all, or quickstart, diagnose, own_reward

The address is in colab/repository.txt. A run needs the extra `notebook`, and takes minutes on a CPU. Run quickstart
first: for want of a hub, diagnose then takes the policy that it has trained.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLAB = ROOT / "colab"
ADDRESS = COLAB / "repository.txt"
NOTEBOOKS = ("quickstart", "diagnose", "own_reward")
SECONDS = 3600  # after which a cell counts as hanging
# What is changed in a notebook while it runs: the lines of diagnose that take a policy of quickstart.
WHILE_RUN = {
  "diagnose": (
    ("# MODEL, CONFIG, OPTIONS", "MODEL, CONFIG, OPTIONS"),
    ("# !.venv/bin/jaxrlvr export", "!.venv/bin/jaxrlvr export"),
  )
}
_BUTTON = re.compile(r"^\[!\[Open in Colab\]\(.*\n\n")
_REPOSITORY = re.compile(r'^REPOSITORY = ".*?"', re.M)
_DROPPED = re.compile(r"pypi|notice|^Hugging Face directory: .*/small-hf/|^done: runs/small-hf$")  # lines of outputs


def button(name: str) -> str:
  """Returns the line of Markdown that opens a notebook of this repository in Colab."""
  place = ADDRESS.read_text().strip().removeprefix("https://github.com/")
  image = "https://colab.research.google.com/assets/colab-badge.svg"
  target = f"https://colab.research.google.com/github/{place}/blob/main/colab/{name}.ipynb"
  return f"[![Open in Colab]({image})]({target})\n\n"


def addressed(name: str, book: dict) -> dict:
  """Returns a notebook with its button on top and with this repository's address in its first cell of code."""
  book = json.loads(json.dumps(book))
  title = book["cells"][0]
  title["source"] = _lines(button(name) + _BUTTON.sub("", "".join(title["source"])))
  install = next(cell for cell in book["cells"] if cell["cell_type"] == "code")
  address = f'REPOSITORY = "{ADDRESS.read_text().strip()}"'
  install["source"] = _lines(_REPOSITORY.sub(address, "".join(install["source"])))
  return book


def _lines(text: str) -> list[str]:
  """Returns the lines of a text with their ends, as notebooks hold texts."""
  return text.splitlines(keepends=True)


def run(name: str, book: dict) -> dict:
  """Runs a notebook in this checkout as Jupyter would, and returns it with the outputs."""
  import nbclient
  import nbformat

  os.environ.pop("XLA_FLAGS", None)
  changed = nbformat.reads(json.dumps(book), as_version=4)
  for cell in changed.cells:
    for old, new in WHILE_RUN.get(name, ()):
      cell.source = cell.source.replace(old, new)
  nbclient.NotebookClient(changed, timeout=SECONDS, resources={"metadata": {"path": str(COLAB)}}).execute()
  for cell, executed in zip(book["cells"], changed.cells, strict=True):
    if cell["cell_type"] == "code":
      cell["execution_count"] = executed.execution_count
      cell["outputs"] = _cleaned(json.loads(json.dumps(executed.outputs)))
  return book


def _cleaned(outputs: list[dict]) -> list[dict]:
  """Returns outputs with streams joined, lines of progress as they end, and places as they are on Colab."""
  joined: list[dict] = []
  for output in json.loads(json.dumps(outputs).replace(str(ROOT), "/content/jaxrlvr")):
    is_stream = output["output_type"] == "stream"
    if is_stream and joined and joined[-1].get("name") == output["name"]:
      joined[-1]["text"] += "".join(output["text"])
    else:
      joined.append(output | ({"text": "".join(output["text"])} if is_stream else {}))
  kept = []
  for output in joined:
    if output["output_type"] == "stream":
      output["text"] = _lines(_shown(output["text"]))
    for kind, data in output.get("data", {}).items():
      if kind.startswith("text/") and isinstance(data, str):
        output["data"][kind] = _lines(data)
    if output["output_type"] != "stream" or output["text"]:
      kept.append(output)
  return kept


def _shown(text: str) -> str:
  """Returns what a terminal shows of a text in the end: lines that were drawn over are left out."""
  lines = []
  for line in text.replace("\r\n", "\n").split("\n"):
    line = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", re.split(r"\r(?:\x1b\[K)?", line)[-1])
    if not _DROPPED.search(line):
      lines.append(line.rstrip())
  return "\n".join(lines)


def main() -> None:
  """Writes the notebooks that the command line names."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--run", nargs="*", choices=NOTEBOOKS, metavar="NAME", help="run these notebooks, or all")
  arguments = parser.parse_args()
  chosen = () if arguments.run is None else arguments.run or NOTEBOOKS
  for name in NOTEBOOKS:
    file = COLAB / f"{name}.ipynb"
    book = addressed(name, json.loads(file.read_text()))
    if name in chosen:
      book = run(name, book)
    file.write_text(json.dumps(book, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
  main()
