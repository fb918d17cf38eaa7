"""Evaluation sets and training files by name, those of the study and those of the built-in arithmetic domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrlvr.base.errors import InputError


class EvalSet(NamedTuple):
  """An evaluation set of the study."""

  file: str  # as in FOLDER/think/FILE.parquet and FOLDER/non-think/FILE.parquet, the study's layout
  verifier: str  # as in `columns.load`: "math", "choice" or "graph"
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
  "quantum-lock-qwen": EvalSet("test_quantum_lock_qwen_7b_50_very_difficult_0", "graph"),
  "largest-island-qwen": EvalSet("test_largest_island_qwen_7b_50_uniform_extra_info_difficulty_0", "graph"),
  "quantum-lock-llama": EvalSet("test_quantum_lock_llama_8b_50_very_difficult_0", "graph"),
  "largest-island-llama": EvalSet("test_largest_island_llama_8b_50_uniform_extra_info_difficulty_0", "graph"),
}


# Generated sets of the built-in domain: the keys of config.heldout in which their problems differ. Keys as above.
GENERATED_SETS: dict[str, Mapping] = {
  "arithmetic": {},
  "arithmetic-longer": {"levels": (5,)},  # more operands
  "arithmetic-large": {"kinds": ("large",)},  # of two digits
}


class Domain(NamedTuple):
  """Names of the evaluation sets that go with a training domain: keys of EVAL_SETS or GENERATED_SETS."""

  inside: tuple[str, ...]  # sets of the same domain
  outside: tuple[str, ...]  # sets of other domains, which measure transfer


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
  """Returns the names of the sets in `sets`, or if it is empty those of all sets of `domain`, inside ones first.

  sets: names of known sets and entries NAME=SOURCE[...] (`own_sets.parse_entries`), which are not checked. domain:
  "arithmetic", "math", "science", "graph-qwen" or "graph-llama".
  """
  names = tuple(entry.partition("=")[0].strip() for entry in sets)
  return names or (*DOMAINS[domain].inside, *DOMAINS[domain].outside)


def find_files(sets: Sequence[str], domain: str, folder: str, prompts: str) -> tuple[dict[str, Path], list[str]]:
  """Returns the paths of the files of the study's evaluation sets, by the sets' names, and the names of absent sets.

  A set is absent if it has no file, the study did not release it, and `sets` is empty; any other set without a file
  raises InputError.
  sets: entries of `heldout.sets`, of which those that are no key of EVAL_SETS (generated sets, and a user's own) are
  passed over. (): all sets of `domain`, a key of DOMAINS. folder: local folder of the study's files. prompts: "think"
  or "non-think", the folder below it with the prompts for a model that thinks or does not.
  """
  with_file = [name for name in set_names(sets, domain) if name in EVAL_SETS]
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
  """Returns the path of one of the study's training files, FOLDER/DOMAIN/.../..._N.parquet, whether or not it exists.

  folder: the study's data folder. model, domain: a key of TRAIN_FILES, such as "qwen2.5-math-1.5b", "math". n: number
  of problems, such as "8". gamma: share of wrong labels as text, such as "0.5"; above 0 the file has labels of which
  that share is wrong. Raises InputError for a pair of model and domain that the study lacks.
  """
  if (model, domain) not in TRAIN_FILES:
    raise InputError(f"the study has no {domain} problems for {model}; it has {'; '.join(map(' '.join, TRAIN_FILES))}")
  if float(gamma) > 0:
    kind, suffix = "noisy", f"_gamma{float(gamma):.2f}"
  else:
    kind, suffix = "train", ""
  name = TRAIN_FILES[model, domain].format(kind=kind, n=n)
  return f"{folder}/{name}{suffix}.parquet"
