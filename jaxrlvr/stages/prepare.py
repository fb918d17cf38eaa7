"""Prepared sets: problems from any source, checked, as one file that loads fast and holds every field."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from jaxrlvr import logbook
from jaxrlvr.data import store
from jaxrlvr.stages import rollout
from jaxrlvr.stages.run import open_run
from jaxrlvr.text.answer import stated
from jaxrlvr.verify.service import Job

# Where the set is written, below the run directory. Keys: value of `prepare.format`.
FORMATS = {"jsonl": "problems.jsonl", "tfds": "problems"}


def prepare(config: ConfigDict, workdir: str | Path) -> dict:
  """Writes the problems of `config.problems` as jsonl or as a tfds data set (ArrayRecord).

  unreadable.jsonl lists the labels that the verifier makes nothing of; `problems.unreadable` says what becomes of them.
  The summary tells which share of all labels the verifier reads and accepts as an answer to themselves.
  """
  with open_run(config, workdir, "prepare") as run:
    found = rollout.read_problems(config, "problems")
    run.begin(problems=found)
    if run.finished:
      return run.summary
    with rollout.verifier_service(config) as service:
      kept, unreadable = rollout.readable(config, "problems", found, service)
      unfit = {problem.id for problem, _ in unreadable}
      fit = [problem for problem in kept if problem.id not in unfit]
      verdicts = service.grade([Job(p.verifier, stated(p.label), p.label, p.extra) for p in fit])
    path = run.workdir / FORMATS[config.prepare.format]
    store.save(path, kept)
    told = [{"id": p.id, "label": p.label, "truth": p.truth, "reason": reason} for p, reason in unreadable]
    logbook.write_jsonl(run.workdir / "unreadable.jsonl", told)
    accepted = sum(verdict.score == 1 for verdict in verdicts)
    print(f"{run.home / path.name}: {len(kept)} of {len(found)} problems; labels accepted against themselves: "
          f"{accepted} of {len(found)} ({accepted / len(found):.2%}); unreadable: {len(unreadable)}")  # fmt: skip
    noisy = sum(p.label != p.truth for p in kept)
    counts = {"problems": len(kept), "unreadable": len(unreadable), "label_is_not_truth": noisy}
    return run.finish(**counts, accepted=accepted / len(found), digest=logbook.digest(kept))
