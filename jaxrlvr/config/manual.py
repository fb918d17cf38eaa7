"""What each stage is for, what it reads and writes, and its config keys with the comments of configs/base.py."""

from __future__ import annotations

import ast
import importlib.util
import io
import textwrap
import tokenize
from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).resolve().parents[1]
FOLDER = next(
  (d for d in (_HERE.parent / "configs", _HERE / "configs") if (d / "base.py").is_file()), _HERE / "configs"
)


class Stage(NamedTuple):
  """The page of one stage."""

  does: str
  reads: str
  writes: str
  example: str  # words behind `jaxrlvr STAGE`
  groups: tuple[str, ...]  # keys that it reads, or beginnings of such


_ALL = ("seed", "resume")
_POLICY = ("init", "tokenizer", "model.", "mesh.", "hosts.", "compile_cache")
_TRAINING = (*_ALL, *_POLICY, "checkpoint.", "stop_after_bad_updates", "tensorboard")
_SAMPLING = tuple(
  f"rl.{name}"
  for name in ("prompt_tokens", "response_tokens", "temperature", "top_", "stop_strings", "shrink", "cache_blocks")
)
_OWN = "config.json, manifest.json, summary.json"
_POLICY_OUT = f"checkpoints/, metrics.jsonl, policy.json, the tokenizer, {_OWN}; serves as config.init"
STAGES: dict[str, Stage] = {
  "tokenizer": Stage(
    "train the SentencePiece tokenizer of the embedded models", "nothing", f"tokenizer.model, {_OWN}",
    "--config=demo --workdir=runs/tokenizer", (*_ALL, "text.", "sft.terse", "sft.levels", "sft.thinking")),
  "import": Stage(
    "check the Hugging Face model of config.model.path and keep a copy as a run directory", "config.model.path",
    f"model/, tokenizer/, policy.json, {_OWN}; serves as config.init",
    "--workdir=models/mine --config.model.path=ORG/NAME", (*_ALL, "tokenizer", "model.path", "model.think")),
  "export": Stage(
    "write config.init as a Hugging Face directory and load it again", "the checkpoint of config.init",
    f"model/ (safetensors, config.json, the tokenizer), {_OWN}", "--workdir=runs/mine-hf --config.init=runs/mine",
    (*_ALL, *_POLICY, "export.")),
  "pretrain": Stage(
    "train a fresh policy on the embedded pre-training text", "config.tokenizer", _POLICY_OUT,
    "--config=demo --workdir=runs/base --config.tokenizer=runs/tokenizer", (*_TRAINING, "text.", "pretrain.")),
  "cpt": Stage(
    "continual pre-training of config.init on dense worked examples, or on config.cpt.source",
    "the checkpoint of config.init, config.cpt.source", _POLICY_OUT,
    "--config=demo --workdir=runs/cpt --config.init=runs/base", (*_TRAINING, "text.", "cpt.")),
  "sft": Stage(
    "supervised fine-tuning of config.init, Thinking or Non-thinking (config.sft.thinking, .source)",
    "the checkpoint of config.init, config.sft.source", _POLICY_OUT,
    "--config=demo --workdir=runs/sft --config.init=runs/cpt", (*_TRAINING, "sft.", "verify.")),
  "prepare": Stage(
    "check the problems of any source and write them as one prepared set", "config.problems.source",
    f"problems.jsonl or problems/, unreadable.jsonl, {_OWN}",
    '--workdir=runs/mine --config.problems.source=mine.jsonl --config.problems.columns="prompt=question,label=answer"',
    (*_ALL, "problems.", "prepare.", "verify.")),
  "filter": Stage(
    "keep the problems that config.init sometimes solves (solve@16 from 1 to 15)",
    "the checkpoint of config.init, config.problems.source", f"problems.jsonl, rows/, histogram.png, {_OWN}",
    "--config=demo --workdir=runs/filter --config.init=runs/sft",
    (*_ALL, *_POLICY, "problems.", "filter.", *_SAMPLING, "evaluate.problems_per_batch", "verify.", "answer.")),
  "subset": Stage(
    "order filtered problems so that the first N are spread over difficulties", "the problems.jsonl of a filter",
    f"problems.jsonl, {_OWN}", "--workdir=runs/subset --config.problems.source=runs/filter/problems.jsonl",
    (*_ALL, "problems.", "subset.")),
  "corrupt": Stage(
    "give problems the labels that config.init most often gets wrong (config.corrupt.gammas)",
    "the checkpoint of config.init, config.problems.source", f"gamma_*.jsonl, rows/, {_OWN}",
    "--config=demo --workdir=runs/corrupt --config.init=runs/sft",
    (*_ALL, *_POLICY, "problems.", "corrupt.", *_SAMPLING, "evaluate.problems_per_batch", "verify.", "answer.")),
  "diagnose": Stage(
    "before RL: measure config.init, and predict what RL does to it under each weak setting",
    "the checkpoint of config.init, config.problems.source", f"diagnosis.md, diagnosis.json, rows/, {_OWN}",
    "--config=demo --workdir=runs/diagnosis --config.init=runs/sft",
    (
      *_ALL, *_POLICY, "problems.", "diagnose.", "judge.", *_SAMPLING, "evaluate.problems_per_batch", "verify.",
      "answer.",
    )),
  "rl": Stage(
    "GRPO and its variants from config.init on config.problems",
    "the checkpoint of config.init, config.problems.source, the held-out sets",
    f"rollouts/, evals/, {_POLICY_OUT}", "--config=demo --workdir=runs/rl --config.init=runs/sft",
    (*_TRAINING, "rl.", "problems.", "heldout.", "evaluate.", "verify.", "paper.", "answer.", "saturation_tail")),
  "evaluate": Stage(
    "avg@k, pass@k, maj@k of config.init on config.heldout", "the checkpoint of config.init, the held-out sets",
    f"table.md, table.csv, evals/, {_OWN}", "--config=demo --workdir=runs/eval --config.init=runs/rl",
    (*_ALL, *_POLICY, "heldout.", "evaluate.", *_SAMPLING, "verify.", "answer.")),
  "judge": Stage(
    "faithfulness and diversity of the responses that config.judge.run recorded", "rollouts/ or evals/ of a run",
    f"metrics.jsonl, judged/, labels.jsonl, usage.json, cache/, {_OWN}",
    "--config=demo --workdir=runs/judged --config.judge.run=runs/rl",
    (*_ALL, "judge.", "saturation_tail", "model.", "mesh.", "hosts.", "compile_cache")),
  "report": Stage(
    "write the HTML report of RUN... (rl, evaluate and judge runs, a grid), or of config.report.runs",
    "metrics, rollouts, evaluations and labels of the runs", "report/index.html, its charts and its tables as CSV",
    "runs/a Thinking=runs/b runs/judged --workdir=runs/report", (*_ALL, "report.", "saturation_tail")),
  "plan": Stage(
    "compile config.plan.stage for a TPU slice on a CPU: memory, limits, hours (launch/plan.sh)",
    "the shape of config.init or config.model, no weights", f"plan.md, plan.json, {_OWN}",
    "--config=section3_rl:llama3.2-3b-instruct,v5e-8 --workdir=runs/plan",
    (*_ALL, *_POLICY, "plan.", "rl.", "evaluate.", "pretrain.", "cpt.", "sft.")),
  "grid": Stage(
    "run the links of config.chain side by side, then report on them (configs/miniature.py)",
    "whatever its links read", f"a run directory a link, links/ (configs and logs), grid.json, report/, {_OWN}",
    "--config=miniature --workdir=runs/miniature", (*_ALL, "chain", "grid.", "report.", "compile_cache")),
  "chain": Stage(
    "run the links of config.chain one after another (configs/demo.py)", "whatever its links read",
    f"a run directory a link, {_OWN}", "--config=demo --workdir=runs/demo", (*_ALL, "chain", "report.")),
}  # fmt: skip


def keys_of(stage: str) -> list[str]:
  """Returns the config keys that a stage reads."""
  return [key for key in defaults() if key.startswith(STAGES[stage].groups)]


def defaults() -> dict[str, object]:
  """Returns the default of every config key, of configs/base.py as it stands."""
  spec = importlib.util.spec_from_file_location("config_base", FOLDER / "base.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)

  def leaves(group, prefix: str) -> dict:
    found = {}
    for name, value in group.items():
      if isinstance(value, dict):
        found |= leaves(value, f"{prefix}{name}.")
      else:
        found[prefix + name] = value
    return found

  return leaves(module.get_config().to_dict(), "")


def meanings() -> dict[str, str]:
  """Returns what the comments of configs/base.py say of each key, "" where they say nothing.

  A comment stands behind an assignment, or on the lines above it. Groups that a function makes, or that are a copy of
  another group, are told where that function or group is."""
  text = (FOLDER / "base.py").read_text()
  comments, alone = _comments(text)
  own: dict[str, dict[str, str]] = {}  # by function: what is said of the names that it assigns
  copies: dict[str, tuple[str, str]] = {}  # name in get_config: (function, group there) that tells of it
  for function in ast.parse(text).body:
    if not isinstance(function, ast.FunctionDef):
      continue
    said = own[function.name] = {}
    for statement in function.body:
      if not isinstance(statement, ast.Assign):
        continue
      inside = range(statement.lineno, statement.end_lineno + 1)
      told = " ".join(comments.get(line) or alone.get(line, "") for line in inside).strip()
      if not told:
        told = _block(alone, statement.lineno - 1)
      for target in statement.targets:
        for one in target.elts if isinstance(target, ast.Tuple) else [target]:
          name = ast.unparse(one).partition(".")[2]
          if name:
            said[name] = told or said.get(name, "")
            if made := _made_by(statement.value):
              copies[f"{function.name}/{name}"] = made
  return {key: _meaning("get_config", key, own, copies) for key in defaults()}


def _made_by(value: ast.expr) -> tuple[str, str] | None:
  """(function, group) of what a group is made by: a call of a function here, or a copy of another group."""
  if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Name):
    return None
  if value.func.id != "ConfigDict":
    return value.func.id, ""
  if value.args and isinstance(value.args[0], ast.Call):  # ConfigDict(c.problems.to_dict())
    return "get_config", ast.unparse(value.args[0].func).split(".")[1]
  return None


def _meaning(function: str, key: str, own: dict, copies: dict) -> str:
  said = own.get(function, {})
  if said.get(key):
    return said[key]
  parts = key.split(".")
  for end in range(len(parts) - 1, 0, -1):
    group, rest = ".".join(parts[:end]), ".".join(parts[end:])
    if made := copies.get(f"{function}/{group}"):
      where, there = made
      return _meaning(where, f"{there}.{rest}" if there else rest, own, copies)
  return ""


def _comments(text: str) -> tuple[dict[int, str], dict[int, str]]:
  """({line: comment behind code}, {line: comment that stands alone})"""
  behind, alone = {}, {}
  lines = text.splitlines()
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      number = token.start[0]
      is_alone = lines[number - 1].lstrip().startswith("#")
      (alone if is_alone else behind)[number] = token.string.lstrip("# ")
  return behind, alone


def _block(alone: dict[int, str], last: int) -> str:
  """The comment that ends at this line."""
  lines = []
  while last in alone:
    lines.insert(0, alone[last])
    last -= 1
  return " ".join(lines)


def page(stage: str) -> str:
  """Returns the help of one stage."""
  one, said, values = STAGES[stage], meanings(), defaults()
  lines = [f"jaxrlvr {stage}: {one.does}", ""]
  lines += textwrap.wrap(f"reads   {one.reads}", 118, subsequent_indent=" " * 8)
  lines += textwrap.wrap(f"writes  {one.writes}", 118, subsequent_indent=" " * 8)
  lines += ["", "example", f"  jaxrlvr {stage} {one.example}", "", "keys, as --config.KEY=VALUE (default: meaning)"]
  for key in keys_of(stage):
    told = f"  {key} = {values[key]!r}: {said[key]}" if key != "chain" else f"  chain: {said[key]}"
    lines += textwrap.wrap(told, 118, subsequent_indent=" " * 6)
  return "\n".join(lines) + "\n"
