"""Elections: answers to one problem are the same if its verifier says so, and the most frequent one wins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.grading.service import Job
from jaxrlvr.tasks.table import VERIFIERS
from jaxrlvr.tasks.verdicts import UNPARSEABLE
from jaxrlvr.text.answer import stated

Grade = Callable[[Sequence[Job]], list[Verdict]]
# What of a problem's `extra` tells right answers from wrong ones: voters see none of it, so that right answers that
# differ stay apart as wrong ones do.
_JUDGES = ("also", "solution_path", "buttons", "entry")


class Election(NamedTuple):
  """The votes on one problem; clusters are numbered by first sight."""

  cluster_G: list[int | None]  # of each sample; None: it does not vote
  winner: int | None  # the sample whose answer is the label: the first of the winning cluster; None: nobody voted
  cause_G: list[str]  # why nobody could say whether the sample agrees with the winner; "" where one can
  ratio: float  # votes for the winner / samples, those without an answer included
  margin: float  # (votes for the winner - votes for the second) / samples


def elect(problems: Sequence[Problem], answers_PG: Sequence[Sequence[str | None]], grade: Grade) -> list[Election]:
  """An election a problem. Who gives no answer, or one that the verifier can't read, does not vote.

  Each answer is compared with the first one of every cluster so far, by the problem's verifier and without what it
  knows of right answers; it joins the first that it equals, else it opens a cluster. A comparison that nobody could
  make counts as unequal. Of a tie the cluster seen first wins.
  """
  texts_P = [list(dict.fromkeys(filter(None, map(_ballot, answers)))) for answers in answers_PG]
  places_P: list[dict[str, int]] = [{} for _ in texts_P]  # text -> cluster
  leaders_P: list[list[str]] = [[] for _ in texts_P]
  doubts_P: list[dict[frozenset[int], str]] = [{} for _ in texts_P]
  for turn in range(max(map(len, texts_P), default=0)):
    voting = [i for i, texts in enumerate(texts_P) if turn < len(texts)]
    rivals_P = {i: leaders_P[i] or [VERIFIERS[problems[i].verifier].probe] for i in voting}
    verdicts = iter(grade([_compare(problems[i], texts_P[i][turn], rival) for i in voting for rival in rivals_P[i]]))
    for i in voting:
      said = [next(verdicts) for _ in rivals_P[i]]
      if UNPARSEABLE in said:
        continue
      said = said if leaders_P[i] else []
      same = [cluster for cluster, verdict in enumerate(said) if verdict.score == 1]
      places_P[i][texts_P[i][turn]] = same[0] if same else len(said)
      if not same:
        leaders_P[i].append(texts_P[i][turn])
        doubts_P[i] |= {frozenset((c, len(said))): v.cause for c, v in enumerate(said) if v.score is None}
  return [_count(*each) for each in zip(answers_PG, places_P, doubts_P, strict=True)]


def _ballot(answer: str | None) -> str:
  """The answer as it is compared; "" where there is none."""
  return (answer or "").strip()


def _compare(problem: Problem, answer: str, rival: str) -> Job:
  blind = {key: value for key, value in problem.extra.items() if key not in _JUDGES}
  return Job(problem.verifier, stated(answer), rival, blind)


def _count(answers_G, places: dict[str, int], doubts: dict[frozenset[int], str]) -> Election:
  cluster_G = [places.get(_ballot(answer)) for answer in answers_G]
  votes = Counter(c for c in cluster_G if c is not None).most_common(2)  # of equals, in the order of first sight
  if not votes:
    return Election(cluster_G, None, [""] * len(cluster_G), 0.0, 0.0)
  (won, first), second = votes[0], votes[1][1] if len(votes) > 1 else 0
  cause_G = [doubts.get(frozenset((c, won)), "") for c in cluster_G]
  return Election(cluster_G, cluster_G.index(won), cause_G, first / len(cluster_G), (first - second) / len(cluster_G))
