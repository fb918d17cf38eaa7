"""Draws the pictures of docs/architecture.md: docs/rooms.svg from pyproject.toml, and docs/rl-step.svg.

python launch/draw.py
"""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# What a box says below the name of its room.
CAPTIONS = {
  "cli": "the command line",
  "door": "import jaxrlvr as jr",
  "stages": "one file a command: rl, evaluate, diagnose, ...",
  "config": "keys, files, checks",
  "reporting": "page, charts, conclusions",
  "data": "problems and text, from files and generators",
  "rewards": "what is paid",
  "analysis": "what is measured",
  "training": "loss, optimizer, update",
  "sampling": "responses",
  "judging": "labels of reasoning",
  "grading": "verdicts",
  "planning": "costs on TPUs",
  "tasks": "kinds of problems, verifiers",
  "model": "weights, forward pass",
  "text": "tokens, templates, answers",
  "device": "mesh, hosts, checkpoints",
  "base": "records, errors, files, logs",
}
WIDTH, BOX, GAP = 760, 46, 12
HOST, DEVICE = "#e8f0fe", "#e6f4ea"
HEAD = (
  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13" '
  'text-anchor="middle" role="img" aria-label="{title}">\n'
  '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
  '<path d="M0 0 8 4 0 8z" fill="#5f6368"/></marker></defs>\n'
  '<rect width="{width}" height="{height}" rx="8" fill="#fff"/>'
)


def box(x: float, y: float, width: float, name: str, caption: str, fill: str) -> str:
  """Returns the SVG of a box with a name and, below it, a caption."""
  middle = x + width / 2
  return (
    f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX}" rx="6" fill="{fill}" stroke="#5f6368"/>'
    f'<text x="{middle:g}" y="{y + 19:g}" font-weight="bold">{escape(name)}</text>'
    f'<text x="{middle:g}" y="{y + 36:g}" font-size="11" fill="#3c4043">{escape(caption)}</text>'
  )


def arrow(x1: float, y1: float, x2: float, y2: float, label: str = "") -> str:
  """Returns the SVG of an arrow with a label above its middle."""
  line = f'<path d="M{x1:g} {y1:g} {x2:g} {y2:g}" stroke="#5f6368" fill="none" marker-end="url(#head)"/>'
  if not label:
    return line
  x, y = (x1 + x2) / 2, (y1 + y2) / 2 - 5
  halo = 'paint-order="stroke" stroke="#fff" stroke-width="4"'
  return f'{line}<text x="{x:g}" y="{y:g}" font-size="11" fill="#b06000" {halo}>{escape(label)}</text>'


def svg(title: str, height: float, parts: list[str]) -> str:
  """Returns a picture of a height, as the text of an SVG file. title: what screen readers say."""
  return "\n".join([HEAD.format(width=WIDTH, height=f"{height:g}", title=escape(title)), *parts, "</svg>\n"])


def floors() -> list[list[str]]:
  """Returns the rooms of each floor, from the top floor down, as the import contract lists them."""
  contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
  (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
  return [_rooms_of(layer) for layer in layers if layer != "__main__"]


def _rooms_of(layer: str) -> list[str]:
  return [room.strip() for room in layer.split("|")]


def rooms() -> str:
  """Returns the picture of the rooms: each imports only from floors below its own."""
  parts = []
  for row, floor in enumerate(floors()):
    width = (WIDTH - GAP * (len(floor) + 1)) / len(floor)
    for column, room in enumerate(floor):
      x, y = GAP + column * (width + GAP), GAP + row * (BOX + GAP)
      parts.append(box(x, y, width, room, CAPTIONS[room], HOST))
  return svg("The rooms of jaxrlvr: each imports only from floors below", GAP + len(floors()) * (BOX + GAP), parts)


class Act(NamedTuple):
  """A box in the picture of a step."""

  on_host: bool
  row: int
  name: str
  caption: str


ACTS = (
  Act(True, 0, "data", "the next problems, as prompts"),
  Act(False, 1, "sampling", "a group of responses to each prompt"),
  Act(True, 2, "text, grading", "read answers, verify them in worker processes"),
  Act(False, 2, "model", "meanwhile: score by the reference model"),
  Act(True, 3, "rewards", "reward by the label, true reward by the truth"),
  Act(True, 4, "training.objective", "advantages and token weights, rows packed"),
  Act(False, 5, "training.update", "microbatches; the state is donated"),
  Act(True, 6, "logbook", "metrics, one step late"),
)
STEP, TOP, LANE = 84, 44, 320


def rl_step() -> str:
  """Returns the picture of one step of RL: what the host does, what the devices do, and what passes between them."""
  left, right = GAP, WIDTH - GAP - LANE
  inner = {True: left + LANE, False: right}  # the side of a lane that faces the other

  def middle(row: int) -> float:
    return TOP + row * STEP + BOX / 2

  parts = [
    f'<text x="{left + LANE / 2:g}" y="28" font-size="15">host</text>',
    f'<text x="{right + LANE / 2:g}" y="28" font-size="15">devices</text>',
  ]
  for act in ACTS:
    x = left if act.on_host else right
    parts.append(box(x, TOP + act.row * STEP, LANE, act.name, act.caption, HOST if act.on_host else DEVICE))
  for row_from, row_to, label in ((0, 1, "prompts"), (4, 5, "one batch")):
    parts.append(arrow(inner[True], middle(row_from), inner[False], middle(row_to) - 8, label))
  for row_from, row_to, label in ((1, 2, "tokens, statistics"), (5, 6, "metrics")):
    parts.append(arrow(inner[False], middle(row_from) + 8, inner[True], middle(row_to) - 8, label))
  for row in (2, 3):
    x = left + LANE / 2
    parts.append(arrow(x, TOP + row * STEP + BOX, x, TOP + (row + 1) * STEP))
  x = right + LANE / 2
  parts.append(arrow(x, TOP + STEP + BOX, x, TOP + 2 * STEP))
  parts.append(arrow(x, TOP + 2 * STEP + BOX, x, TOP + 5 * STEP, "reference log-probabilities"))
  return svg("One step of RL on the host and on the devices", TOP + 6 * STEP + BOX + GAP, parts)


PICTURES = {"rooms.svg": rooms, "rl-step.svg": rl_step}

if __name__ == "__main__":
  for name, draw in PICTURES.items():
    (ROOT / "docs" / name).write_text(draw())
