"""Prepared sets: problems from any source, checked, as one file that loads fast and holds every field."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxrlvr.base import logbook
from jaxrlvr.base.types import Problem
from jaxrlvr.data import prepared
from jaxrlvr.grading.service import Job, Service
from jaxrlvr.stages import rollout
from jaxrlvr.stages.run_directory import open_run
from jaxrlvr.text.answer import stated

_LOG = logging.getLogger(__name__)
_COMMAND, _WORD, _NUMBER = re.compile(r"\\[a-zA-Z]+"), re.compile(r"[^\W\d_]{2}"), re.compile(r"\d[\d,.]*(?<![,.])")
# Where the set is written, below the run directory. Keys: value of `prepare.format`.
FILE_FORMATS = {"jsonl": "problems.jsonl", "tfds": "problems"}


def prepare(config: ConfigDict, workdir: str | Path) -> dict:
  """Writes the problems of `config.problems` as jsonl or as a tfds data set (ArrayRecord).

  unreadable.jsonl lists the labels that the verifier makes nothing of; `problems.unreadable` says what becomes of them.
  Labels that hold a number in words and are not matched by that number alone are told.
  The summary tells which share of all labels the verifier reads and accepts as an answer to themselves.
  """
  with open_run(config, workdir, "prepare") as run:
    found = rollout.read_problems(config, "problems")
    if run.finished:
      run.begin(problems=found)
      return run.summary
    with rollout.verifier_service(config) as service:
      kept, unreadable = rollout.with_readable_labels(config, "problems", found, service)
      run.begin(problems=found)
      unfit = {problem.id for problem, _ in unreadable}
      fit = [problem for problem in kept if problem.id not in unfit]
      verdicts = rollout.in_parts(service.grade, [Job(p.verifier, stated(p.label), p.label, p.extra) for p in fit])
      wordy = in_words(fit, service)
    if wordy:
      _LOG.warning(
        "config.problems: %d of %d labels hold a number in words that is not paid without them, the first %r of "
        "problem %s; ask for them in the prompt (config.problems.system), or make the numbers the labels",
        len(wordy), len(found), wordy[0].label[:80], wordy[0].id,
      )  # fmt: skip
    path = run.workdir / FILE_FORMATS[config.prepare.format]
    if path.is_dir():
      shutil.rmtree(path)  # of this run, killed before its end
    prepared.save(path, kept)
    told = [{"id": p.id, "label": p.label, "truth": p.truth, "reason": reason} for p, reason in unreadable]
    logbook.write_jsonl(run.workdir / "unreadable.jsonl", told)
    accepted = sum(verdict.score == 1 for verdict in verdicts)
    print(f"{run.home / path.name}: {len(kept)} of {len(found)} problems; labels accepted against themselves: "
          f"{accepted} of {len(found)} ({accepted / len(found):.2%}); unreadable: {len(unreadable)}")  # fmt: skip
    noisy = sum(p.label != p.truth for p in kept)
    counts = {"problems": len(kept), "unreadable": len(unreadable), "label_is_not_truth": noisy}
    return run.finish(**counts, accepted=accepted / len(found), digest=logbook.digest(kept))


def in_words(problems: Sequence[Problem], service: Service) -> list[Problem]:
  """The mathematical problems whose label holds one number in words, and isn't matched by that number alone."""
  asked = []
  for problem in problems:
    plain = _COMMAND.sub(" ", problem.label)
    numbers = _NUMBER.findall(plain)
    if problem.verifier == "math" and len(numbers) == 1 and _WORD.search(plain):
      asked.append((problem, Job("math", stated(numbers[0]), problem.label, problem.extra)))
  verdicts = rollout.in_parts(service.grade, [job for _, job in asked])
  return [problem for (problem, _), verdict in zip(asked, verdicts, strict=True) if verdict.score != 1]
