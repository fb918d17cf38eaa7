"""The pages of `jaxrlvr STAGE --help`: what each stage does, reads and writes, and which config keys it reads."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxrlvr.config.rules import declared

if TYPE_CHECKING:
  from ml_collections import ConfigDict


class Page(NamedTuple):
  """What the help of one stage says."""

  does: str  # a phrase that begins with a verb
  reads: str  # files and directories
  writes: str  # files below the run directory
  example: str  # the arguments that follow `jaxrlvr STAGE`
  # Config keys that the stage reads, as "seed"; a name that ends with a dot, as "rl.", stands for all keys of the
  # group. Wrong values of other keys don't stop the stage.
  keys: tuple[str, ...]
  most_used: tuple[str, ...] = ()  # of these, the keys that the help explains first, in this order


_MOST_USED_OF_RL = (
  "init",
  "model.path",
  "problems.source",
  "problems.count",
  "heldout.source",
  "rl.reward",
  "rl.steps",
  "rl.problems_per_step",
  "rl.group_size",
  "rl.prompt_tokens",
  "rl.response_tokens",
  "rl.optim.lr",
)
_WIDTH = 118  # characters of a line
_USAGE = """usage   jaxrlvr {stage} --workdir=DIR [--config=FILE[:ARG]] [--config.KEY=VALUE ...]
        FILE: a Python file, a run's config.json, or a name in configs/ (default: base, that is configs/base.py)
        DIR: the directory of the run; it is made, or continued if it holds one
        `jaxrlvr --help` explains the other flags and the exit codes
"""
_ALL = ("seed", "resume", "hosts.")
_POLICY = ("init", "tokenizer", "model.", "mesh.", "compile_cache")
_TRAINING = (*_ALL, *_POLICY, "lora.", "checkpoint.", "stop_after_bad_updates", "tensorboard")
_SAMPLING = (
  "rl.prompt_tokens",
  "rl.response_tokens",
  "rl.temperature",
  "rl.top_k",
  "rl.top_p",
  "rl.stop_strings",
  "rl.shrink",
  "rl.cache_blocks",
  "verify.",
  "answer.",
)
_OWN = "config.json, manifest.json, summary.json"
_POLICY_OUT = f"checkpoints/, metrics.jsonl, policy.json, the tokenizer, {_OWN}; serves as config.init"
STAGE_PAGES: dict[str, Page] = {
  "tokenizer": Page(
    "train the built-in SentencePiece tokenizer",
    "nothing: its text is generated",
    f"tokenizer.model, {_OWN}",
    "--config=demo --workdir=runs/tokenizer",
    (*_ALL, "text.", "sft.terse", "sft.levels", "sft.thinking"),
  ),
  "import": Page(
    "check a Hugging Face model (config.model.path) and keep a copy as a run directory",
    "the Hugging Face directory config.model.path, or ORG/NAME of the hub; the PEFT directory config.model.adapter",
    f"model/, adapter/, tokenizer/, policy.json, {_OWN}; serves as config.init",
    "--workdir=models/mine --config.model.path=ORG/NAME",
    (*_ALL, "init", "tokenizer", "model."),
  ),
  "export": Page(
    "write a policy (config.init) as a Hugging Face directory, then load it again to check it",
    "the checkpoint of config.init",
    f"model/ (safetensors, config.json, the tokenizer), adapter/ (of a policy with LoRA: a PEFT directory), {_OWN}",
    "--workdir=runs/mine-hf --config.init=runs/mine",
    (*_ALL, *_POLICY, "export."),
  ),
  "pretrain": Page(
    "train a fresh policy on the built-in pre-training text",
    "the tokenizer of config.tokenizer",
    _POLICY_OUT,
    "--config=demo --workdir=runs/base --config.tokenizer=runs/tokenizer",
    (*_TRAINING, "text.", "pretrain."),
  ),
  "cpt": Page(
    "continue pre-training a policy (config.init) on built-in worked examples, or on config.cpt.source",
    "the checkpoint of config.init, config.cpt.source",
    _POLICY_OUT,
    "--config=demo --workdir=runs/cpt --config.init=runs/base",
    (*_TRAINING, "text.", "cpt."),
  ),
  "sft": Page(
    "fine-tune a policy (config.init) on examples, Thinking or Non-thinking (config.sft.thinking)",
    "the checkpoint of config.init, config.sft.source",
    _POLICY_OUT,
    "--config=demo --workdir=runs/sft --config.init=runs/cpt",
    (*_TRAINING, "sft.", "verify.", "answer."),
  ),
  "prepare": Page(
    "check the problems of config.problems.source and write them as one prepared set",
    "config.problems.source",
    f"problems.jsonl or problems/, unreadable.jsonl, {_OWN}",
    '--workdir=runs/mine --config.problems.source=mine.jsonl --config.problems.columns="prompt=question,label=answer"',
    (*_ALL, "problems.", "prepare.", "verify."),
  ),
  "filter": Page(
    "keep the problems that a policy (config.init) sometimes solves: 1 to 15 times of 16",
    "the checkpoint of config.init, config.problems.source",
    f"problems.jsonl, rows/, histogram.png, {_OWN}",
    "--config=demo --workdir=runs/filter --config.init=runs/sft",
    (*_ALL, *_POLICY, "problems.", "filter.", *_SAMPLING, "evaluate.problems_per_batch"),
  ),
  "subset": Page(
    "put filtered problems in an order in which the first N, for any N, are spread over difficulties",
    "the problems.jsonl of a filter",
    f"problems.jsonl, {_OWN}",
    "--workdir=runs/subset --config.problems.source=runs/filter/problems.jsonl",
    (*_ALL, "problems.", "subset."),
  ),
  "corrupt": Page(
    "give shares of the problems a wrong label: the most frequent wrong answer of a policy (config.init)",
    "the checkpoint of config.init, config.problems.source",
    f"gamma_*.jsonl, rows/, {_OWN}",
    "--config=demo --workdir=runs/corrupt --config.init=runs/sft",
    (*_ALL, *_POLICY, "problems.", "corrupt.", *_SAMPLING, "evaluate.problems_per_batch"),
  ),
  "diagnose": Page(
    "before RL: measure a policy (config.init), and predict what RL does to it under each weak supervision",
    "the checkpoint of config.init, config.problems.source",
    f"diagnosis.md, diagnosis.json, rows/, {_OWN}",
    "--config=demo --workdir=runs/diagnosis --config.init=runs/sft",
    (
      *_ALL,
      *_POLICY,
      "problems.",
      "diagnose.",
      "judge.",
      *_SAMPLING,
      "evaluate.problems_per_batch",
      "evaluate.pass_k",
    ),
  ),
  "rl": Page(
    "train a policy (config.init) by GRPO or a variant on config.problems",
    "the checkpoint of config.init, config.problems.source, the held-out sets",
    f"rollouts/, evals/, {_POLICY_OUT}",
    "--config=demo --workdir=runs/rl --config.init=runs/sft",
    (*_TRAINING, "rl.", "problems.", "heldout.", "evaluate.", "verify.", "paper.", "answer.", "saturation_tail"),
    _MOST_USED_OF_RL,
  ),
  "evaluate": Page(
    "measure avg@k, pass@k and maj@k of a policy (config.init) on config.heldout",
    "the checkpoint of config.init, the held-out sets",
    f"table.md, table.csv, evals/, {_OWN}",
    "--config=demo --workdir=runs/eval --config.init=runs/rl",
    (*_ALL, *_POLICY, "problems.", "heldout.", "evaluate.", *_SAMPLING),
  ),
  "judge": Page(
    "label responses that a run (config.judge.run) recorded, for faithfulness and diversity",
    "rollouts/ or evals/ of a run",
    f"metrics.jsonl, judged/, labels.jsonl, usage.json, cache/, {_OWN}",
    "--config=demo --workdir=runs/judged --config.judge.run=runs/rl",
    (*_ALL, "judge.", "saturation_tail", "model.", "mesh.", "compile_cache", "rl.shrink", "rl.cache_blocks"),
  ),
  "report": Page(
    "write one HTML page about runs of rl, evaluate and judge and grids: RUN..., or config.report.runs",
    "metrics, rollouts, evaluations and labels of the runs",
    f"index.html, its charts as PNG and SVG, its tables as CSV, report.json, {_OWN}",
    "runs/a Thinking=runs/b runs/judged --workdir=runs/report",
    (*_ALL, "report.", "saturation_tail"),
  ),
  "plan": Page(
    "compile a stage (config.plan.stage) for a TPU slice on a CPU: memory, limits, hours (launch/plan.sh)",
    "the shape of config.init, of config.model.path (its config.json is enough) or of config.model; no weights",
    f"plan.md, plan.json, {_OWN}",
    "--config=section3_rl:llama3.2-3b-instruct,v5e-8 --workdir=runs/plan",
    (*_ALL, *_POLICY, "plan.", "rl.", "evaluate.", "pretrain.", "cpt.", "sft."),
  ),
  "grid": Page(
    "run the links of config.chain side by side, then report on them (example: configs/miniature.py)",
    "whatever its links read",
    f"a run directory for each link, links/ (configs and logs), grid.json, report/, {_OWN}",
    "--config=miniature --workdir=runs/miniature",
    (*_ALL, "chain", "grid.", "report.", "compile_cache"),
  ),
  "chain": Page(
    "run the links of config.chain one after another (example: configs/demo.py)",
    "whatever its links read",
    f"a run directory for each link, {_OWN}",
    "--config=demo --workdir=runs/demo",
    (*_ALL, "chain", "report."),
  ),
}


def keys_of(stage: str) -> list[str]:
  """Returns the dotted names of the config keys that a stage reads, in the order of configs/base.py.

  stage: a key of `STAGE_PAGES`; another name raises KeyError.
  """
  keys = STAGE_PAGES[stage].keys
  groups = tuple(key for key in keys if key.endswith("."))
  return [key for key in declared() if key in keys or key.startswith(groups)]


def keys_read(stage: str | None, config: ConfigDict) -> set[str]:
  """Returns the dotted names of the config keys whose values count for a stage; all keys if it is None or no stage.

  They are those of `keys_of`, except for the stage `plan`: of these, it reads only `plan.` and what the stage that it
  plans (config.plan.stage) reads.
  """
  if stage not in STAGE_PAGES:
    return set(declared())
  read = set(keys_of(stage))
  if stage == "plan":
    planned = set(keys_of(config.plan.stage)) if config.plan.stage in STAGE_PAGES else set()
    read = {key for key in read if key in planned or key.startswith("plan.")}
  return read


def page(stage: str) -> str:
  """Returns the text that `jaxrlvr STAGE --help` prints, wrapped, with a line break at its end.

  It says how to call the stage, what it reads and writes, gives an example, and explains each key once: first the most
  used keys, then other keys of the stage's own group, then keys that other stages read too. stage: a key of
  `STAGE_PAGES`.
  """
  stage_page = STAGE_PAGES[stage]
  keys = [key for key in keys_of(stage) if key not in stage_page.most_used]
  own = [key for key in keys if key.startswith(f"{stage}.")]
  shared = [key for key in keys if key not in own]
  usage = _USAGE.format(stage="report RUN..." if stage == "report" else stage)
  lines = [f"jaxrlvr {stage}: {stage_page.does}", "", *usage.splitlines()]
  lines += textwrap.wrap(f"reads   {stage_page.reads}", _WIDTH, subsequent_indent=" " * 8)
  lines += textwrap.wrap(f"writes  {stage_page.writes}", _WIDTH, subsequent_indent=" " * 8)
  lines += ["", "example", f"  jaxrlvr {stage} {stage_page.example}", ""]
  lines += ["keys, each as --config.KEY=VALUE; a line says KEY = DEFAULT: meaning [what the value must be]"]
  if stage_page.most_used:
    lines += ["", "most used keys", *_described(stage_page.most_used)]
  if own:
    title = f"other keys of {stage}" if stage_page.most_used else f"keys of {stage}"
    lines += ["", title, *_described(own), "", "keys that other stages read too"]
  return "\n".join(lines + _described(shared)) + "\n"


def _described(keys: Sequence[str]) -> list[str]:
  """Returns wrapped lines "KEY = DEFAULT: MEANING [RULE]" for these keys."""
  lines = []
  for name in keys:
    key = declared()[name]
    default = "" if name == "chain" else f" = {key.default!r}"
    rule = f" [{key.rule.words()}]" if key.rule.on_page else ""
    line = f"  {name}{default}: {key.meaning}{rule}"
    lines += textwrap.wrap(line, _WIDTH, subsequent_indent=" " * 6, break_on_hyphens=False)
  return lines
