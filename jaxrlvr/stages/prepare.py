"""The stage prepare: reads problems from any source, checks them, and writes a set that loads fast with every field."""

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
from jaxrlvr.text.answer import boxed_response

_LOG = logging.getLogger(__name__)
_COMMAND = re.compile(r"\\[a-zA-Z]+")  # of LaTeX
_WORD = re.compile(r"[^\W\d_]{2}")  # two letters in a row
_NUMBER = re.compile(r"\d[\d,.]*(?<![,.])")
# File or folder of the run directory that holds the set, by config.prepare.format.
_PLACE_OF_FORMAT = {"jsonl": "problems.jsonl", "tfds": "problems"}


def prepare(config: ConfigDict, workdir: str | Path) -> dict:
  """Reads the problems of `config.problems`, checks their labels, and writes them as a set that loads fast.

  Writes problems.jsonl (prepare.format "jsonl") or the tfds data set problems/ ("tfds", ArrayRecord), and
  unreadable.jsonl, a row {"id", "label", "truth", "reason"} for each problem whose label or truth its verifier can't
  parse; problems.unreadable says whether these are kept ("warn"), left out ("drop") or an error. Warns where a label
  such as "5 apples" is not matched by its number alone. Returns the summary: `problems` (number written), `unreadable`
  (number of such problems), `label_is_not_truth` (number of labels that differ from their truth), `accepted` (share,
  from 0 to 1, of all labels read that the verifier accepts as an answer to themselves) and `digest` (SHA-256 of the
  problems written, in hexadecimal). A finished run returns its summary and writes nothing. Raises InputError for
  problems that can't be read, and where no label is readable.
  """
  with open_run(config, workdir, "prepare") as run:
    problems = rollout.read_problems(config, "problems")
    if run.finished:
      run.begin(problems=problems)
      return run.summary
    with rollout.verifier_service(config) as service:
      kept, unreadable = rollout.with_readable_labels(config, "problems", problems, service)
      run.begin(problems=problems)
      unreadable_ids = {problem.id for problem, _ in unreadable}
      readable = [problem for problem in kept if problem.id not in unreadable_ids]
      accepted = _count_accepted(readable, service)
      in_words = _labels_in_words(readable, service)
    if in_words:
      _LOG.warning(
        "config.problems: %d of %d labels hold a number in words that is not paid without them, the first %r of "
        "problem %s; ask for them in the prompt (config.problems.system), or make the numbers the labels",
        len(in_words),
        len(problems),
        in_words[0].label[:80],
        in_words[0].id,
      )
    path = run.workdir / _PLACE_OF_FORMAT[config.prepare.format]
    if path.is_dir():
      shutil.rmtree(path)  # this run was killed before its end
    prepared.save(path, kept)
    _write_unreadable(run.workdir / "unreadable.jsonl", unreadable)
    share = accepted / len(problems)
    print(
      f"{run.home / path.name}: {len(kept)} of {len(problems)} problems; labels accepted against themselves: "
      f"{accepted} of {len(problems)} ({share:.2%}); unreadable: {len(unreadable)}"
    )
    return run.finish(
      problems=len(kept),
      unreadable=len(unreadable),
      label_is_not_truth=sum(problem.label != problem.truth for problem in kept),
      accepted=share,
      digest=logbook.digest(kept),
    )


def _count_accepted(problems: Sequence[Problem], service: Service) -> int:
  """Returns how many labels the verifier accepts as an answer to themselves."""
  jobs = [Job(problem.verifier, boxed_response(problem.label), problem.label, problem.extra) for problem in problems]
  verdicts = rollout.grade_in_parts(service.grade, jobs)
  return sum(verdict.score == 1 for verdict in verdicts)


def _write_unreadable(path: Path, unreadable: Sequence[tuple[Problem, str]]) -> None:
  """Writes a row for each problem whose label or truth can't be parsed, with the reason."""
  rows = []
  for problem, reason in unreadable:
    rows.append({"id": problem.id, "label": problem.label, "truth": problem.truth, "reason": reason})
  logbook.write_jsonl(path, rows)


def _labels_in_words(problems: Sequence[Problem], service: Service) -> list[Problem]:
  """Returns the problems of verifier math whose label is one number with words, and which that number does not solve.

  An example is the label "5 apples" where the verifier does not accept the answer "5".
  """
  candidates, jobs = [], []
  for problem in problems:
    label_without_commands = _COMMAND.sub(" ", problem.label)
    numbers = _NUMBER.findall(label_without_commands)
    if problem.verifier == "math" and len(numbers) == 1 and _WORD.search(label_without_commands):
      candidates.append(problem)
      jobs.append(Job("math", boxed_response(numbers[0]), problem.label, problem.extra))
  verdicts = rollout.grade_in_parts(service.grade, jobs)
  return [problem for problem, verdict in zip(candidates, verdicts, strict=True) if verdict.score != 1]
