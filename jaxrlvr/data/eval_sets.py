"""Evaluation sets and training files by name, those of the study and those of the built-in arithmetic domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrlvr.base.errors import InputError


class EvalSet(NamedTuple):
  """An evaluation set of the study."""

  file: str  # as in FOLDER/think/FILE.parquet and FOLDER/non-think/FILE.parquet, the study's layout
  verifier: str
  released: bool = True  # False: the study did not release it; evaluated only if the user has it


# Keys: names in `heldout.sets` and in metrics.
EVAL_SETS: dict[str, EvalSet] = {
  "math500": EvalSet("math500", "math"),
  "amc": EvalSet("amc_test", "math"),
  "aime24": EvalSet("aime2024", "math"),
  "aime25": EvalSet("aime2025", "math"),
  "minerva": EvalSet("minerva_math", "math"),
  "olympiad": EvalSet("olympiad_bench", "math"),
  "scibench": EvalSet("scibench_test", "math"),
  "scp-hard": EvalSet("scp_test_difficult_1", "math"),
  "gpqa-diamond": EvalSet("stem__gpqa_diamond_198", "choice"),
  "supergpqa": EvalSet("supergpqa", "choice", released=False),
  "mmlu-sci": EvalSet("mmlu_sci", "choice", released=False),
  **{
    f"{task.replace('_', '-')}-{model}": EvalSet(f"test_{task}_{model}_{size}_50_{kind}_0", "graph")
    for model, size in (("qwen", "7b"), ("llama", "8b"))
    for task, kind in (("quantum_lock", "very_difficult"), ("largest_island", "uniform_extra_info_difficulty"))
  },
}


# Generated sets of the built-in domain: the keys of config.heldout in which their problems differ. Keys as above.
GENERATED_SETS: dict[str, Mapping] = {
  "arithmetic": {},
  "arithmetic-longer": {"levels": (5,)},  # more operands
  "arithmetic-large": {"kinds": ("large",)},  # of two digits
}


class Domain(NamedTuple):
  """Names of the evaluation sets inside and outside of a training domain."""

  inside: tuple[str, ...]
  outside: tuple[str, ...]


_MATH = ("math500", "amc", "aime24", "aime25", "minerva", "olympiad")
_SCIENCE = ("scp-hard", "gpqa-diamond", "mmlu-sci", "supergpqa", "scibench")
_BEYOND_GRAPH = ("math500", "aime24", "minerva", "gpqa-diamond", "scp-hard")
# Keys: values of `heldout.domain` (paper, appendix B.1; each model family has graph tests of its own).
DOMAINS: dict[str, Domain] = {
  "arithmetic": Domain(("arithmetic",), ("arithmetic-longer", "arithmetic-large")),
  "math": Domain(_MATH, _SCIENCE),
  "science": Domain(_SCIENCE, ("math500", "amc", "minerva", "olympiad")),
  "graph-qwen": Domain(("quantum-lock-qwen", "largest-island-qwen"), _BEYOND_GRAPH),
  "graph-llama": Domain(("quantum-lock-llama", "largest-island-llama"), _BEYOND_GRAPH),
}


def set_names(sets: Sequence[str], domain: str) -> tuple[str, ...]:
  """Returns `sets`, or where it is empty the names of all sets of `domain`, inside ones first."""
  return tuple(sets) or (*DOMAINS[domain].inside, *DOMAINS[domain].outside)


def find_files(sets: Sequence[str], domain: str, folder: str, prompts: str) -> tuple[dict[str, Path], list[str]]:
  """Returns the file of each set by name, and the names of sets that are absent and that the study did not release.

  sets: names; empty: all sets of `domain`. folder: holds the study's files. prompts: "think" or "non-think". Generated
  sets (`GENERATED_SETS`) have no file and are left out. Raises InputError for a missing file of a set that is named or
  that the study released.
  """
  with_file = [name for name in set_names(sets, domain) if name not in GENERATED_SETS]
  files = {name: Path(folder) / prompts / f"{EVAL_SETS[name].file}.parquet" for name in with_file}
  absent = [name for name, file in files.items() if not file.is_file()]
  for name in absent:
    if sets or EVAL_SETS[name].released:
      raise InputError(
        f"set {name}: {files[name]} does not exist; point config.heldout.folder at the folder that holds "
        f"{prompts}/ with the study's files"
      )
  return {name: file for name, file in files.items() if name not in absent}, absent


# The study's training files below its data folder, by (model, domain). kind: train, or noisy with wrong labels.
TRAIN_FILES: dict[tuple[str, str], str] = {
  ("qwen2.5-math-1.5b", "math"): "math/{kind}/qwen-math-1.5b/sky_math_{n}",
  ("qwen2.5-math-1.5b", "science"): "science/{kind}/qwen-math-1.5b/scp_{n}",
  # The released script trains this model on the problems filtered for qwen2.5-math-1.5b.
  ("qwen2.5-1.5b", "math"): "math/{kind}/qwen-math-1.5b/sky_math_{n}",
  ("qwen2.5-1.5b", "science"): "science/{kind}/qwen-math-1.5b/scp_{n}",
  ("qwen2.5-math-7b", "graph"): "graph/{kind}/qwen-math-7b/graph_{n}",
  ("llama3.2-3b-instruct", "math"): "math/{kind}/llama-3b/sky_math_{n}",
  ("llama3.2-3b-instruct", "science"): "science/{kind}/llama-3b/scp_{n}",
  ("llama3.2-3b-thinking", "math"): "math/{kind}/llama-3b-think/sky_math_{n}",
  ("llama3.2-3b-nonthinking", "math"): "math/{kind}/llama-3b/sky_math_{n}",
  ("llama3.1-8b-instruct", "graph"): "graph/{kind}/llama-8b/graph_{n}",
}


def train_file(folder: str, model: str, domain: str, n: str, gamma: str = "0.0") -> str:
  """Returns the path of `model`'s training file of `n` problems in `domain`, below the study's data `folder`.

  gamma: share of wrong labels; above 0 the path is that of the file with that share. Raises InputError for a pair of
  model and domain that the study lacks.
  """
  if (model, domain) not in TRAIN_FILES:
    raise InputError(f"the study has no {domain} problems for {model}; it has {'; '.join(map(' '.join, TRAIN_FILES))}")
  if float(gamma) > 0:
    kind, suffix = "noisy", f"_gamma{float(gamma):.2f}"
  else:
    kind, suffix = "train", ""
  name = TRAIN_FILES[model, domain].format(kind=kind, n=n)
  return f"{folder}/{name}{suffix}.parquet"
