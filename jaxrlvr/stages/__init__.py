"""The stages by name (STAGES): each is a function (config, workdir) -> summary."""

import functools

from jaxrlvr.stages.chain import chain
from jaxrlvr.stages.curate import corrupt, filter_problems, subset
from jaxrlvr.stages.diagnose import diagnose
from jaxrlvr.stages.evaluate import evaluate
from jaxrlvr.stages.grid import grid
from jaxrlvr.stages.hf_models import export, import_model
from jaxrlvr.stages.judge import judge
from jaxrlvr.stages.language_modelling import tokenizer, train
from jaxrlvr.stages.links import StageFunction
from jaxrlvr.stages.plan import plan
from jaxrlvr.stages.prepare import prepare
from jaxrlvr.stages.report import report
from jaxrlvr.stages.rl import rl

# The stages by the name that the command line knows. Each takes a config that was checked for it and the path of a run
# directory, writes there, and returns the summary of the run, a dict. A finished run does nothing and returns its
# summary again, except for report (written anew), chain and grid (each link decides itself) and plan (plans anew).
STAGES: dict[str, StageFunction] = {
  "tokenizer": tokenizer,
  "import": import_model,
  "export": export,
  "pretrain": functools.partial(train, "pretrain"),
  "cpt": functools.partial(train, "cpt"),
  "sft": functools.partial(train, "sft"),
  "prepare": prepare,
  "filter": filter_problems,
  "subset": subset,
  "corrupt": corrupt,
  "diagnose": diagnose,
  "rl": rl,
  "evaluate": evaluate,
  "judge": judge,
  "report": report,
  "plan": plan,
}
STAGES |= {
  "chain": functools.partial(chain, dict(STAGES)),
  "grid": functools.partial(grid, dict(STAGES)),
}
