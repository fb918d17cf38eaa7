"""Holds elections: the verifier sorts the answers to a problem into clusters, and the largest cluster wins."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.grading.service import Job
from jaxrlvr.tasks.table import verifier_of
from jaxrlvr.tasks.verdicts import UNPARSEABLE
from jaxrlvr.text.answer import boxed_response

# Takes jobs and returns a verdict for each, in their order, as `Service.grade` does.
Grade = Callable[[Sequence[Job]], list[Verdict]]
# Keys of Problem.extra that tell right answers from wrong answers. Elections hide them from the verifier. With them it
# would put different right answers into one cluster, while different wrong answers stay apart.
_TRUTH_KEYS = ("also", "solution_path", "buttons", "entry")


class Election(NamedTuple):
  """The votes on one problem. Clusters are numbered from 0 in the order in which their first answer occurs.

  cause_G says why the verifier could not compare a sample's cluster with the winning one: "timeout", "memory", "died"
  or "error". It is "" for a sample that was compared, is in the winning cluster, or does not vote.
  """

  cluster_G: list[int | None]  # the number of each sample's cluster; None: the sample does not vote
  winner: int | None  # index in G of the winning cluster's first sample, whose answer is elected; None: nobody voted
  cause_G: list[str]
  ratio: float  # votes for the winning cluster / G; 0 if nobody voted
  margin: float  # (votes for the winning cluster - votes for the second largest) / G; 0 if nobody voted


def elect(problems: Sequence[Problem], answers_PG: Sequence[Sequence[str | None]], grade: Grade) -> list[Election]:
  """Holds an election among the answers to each problem; returns one Election for each problem, in their order.

  The problem's verifier compares each answer with the first answer of every cluster so far. The answer joins the first
  cluster with which it scores 1, else it opens a cluster of its own; so it does where a comparison has no score. An
  answer that is None, blank, or that the verifier can't read does not vote. Of clusters of equal size the first wins.
  Neither label and truth nor the right answers in Problem.extra play any part.

  answers_PG: for each of the P problems the answers of its G samples; None for a sample without an answer. grade: takes
  jobs and returns a verdict for each, in their order. It is called in rounds: the n-th call has all comparisons of the
  n-th different answer of every problem.
  """
  clusterings = []
  for problem, answers in zip(problems, answers_PG, strict=True):
    clusterings.append(_Clustering(problem, answers))
  turns = max((len(clustering.texts) for clustering in clusterings), default=0)
  for turn in range(turns):
    voting = [clustering for clustering in clusterings if turn < len(clustering.texts)]
    jobs: list[Job] = []
    counts = []
    for clustering in voting:
      comparisons = clustering.comparisons(turn)
      jobs += comparisons
      counts.append(len(comparisons))
    verdicts = iter(grade(jobs))
    for clustering, count in zip(voting, counts, strict=True):
      clustering.place(turn, list(itertools.islice(verdicts, count)))
  return [clustering.count() for clustering in clusterings]


class _Clustering:
  """The clusters of the answers to one problem, which grow answer by answer.

  `texts`: the different texts of answers, in the order in which they occur.
  """

  def __init__(self, problem: Problem, answers_G: Sequence[str | None]):
    self._problem = problem
    self._answers_G = answers_G
    stripped = [_stripped(answer) for answer in answers_G]
    self.texts = list(dict.fromkeys(text for text in stripped if text))
    self._cluster_of: dict[str, int] = {}  # by text
    self._first_texts: list[str] = []  # of each cluster
    self._doubts: dict[frozenset[int], str] = {}  # pair of clusters -> why their first texts could not be compared

  def comparisons(self, turn: int) -> list[Job]:
    """Returns jobs that compare a text with each cluster; before there is any, one job that only tries to read it."""
    labels = self._first_texts or [verifier_of("strict", self._problem.verifier).probe]
    extra = {key: value for key, value in self._problem.extra.items() if key not in _TRUTH_KEYS}
    return [Job(self._problem.verifier, boxed_response(self.texts[turn]), label, extra) for label in labels]

  def place(self, turn: int, verdicts: Sequence[Verdict]) -> None:
    """Puts a text into a cluster by the verdicts on its `comparisons`; leaves out a text that can't be read."""
    if UNPARSEABLE in verdicts:
      return
    text = self.texts[turn]
    new_cluster = len(self._first_texts)
    by_cluster = verdicts[:new_cluster]  # none of the first text's, whose only job compares it with no cluster
    for cluster, verdict in enumerate(by_cluster):
      if verdict.score == 1:
        self._cluster_of[text] = cluster
        return
    self._cluster_of[text] = new_cluster
    self._first_texts.append(text)
    for cluster, verdict in enumerate(by_cluster):
      if verdict.score is None:
        self._doubts[frozenset((cluster, new_cluster))] = verdict.cause

  def count(self) -> Election:
    """Counts the votes once all texts have been placed."""
    cluster_G = [self._cluster_of.get(_stripped(answer)) for answer in self._answers_G]
    samples = len(cluster_G)
    votes = Counter(cluster for cluster in cluster_G if cluster is not None)
    if not votes:
      return Election(cluster_G, None, [""] * samples, 0.0, 0.0)
    ranking = votes.most_common(2)  # equal counts stand in the order in which the clusters occur
    winning_cluster, most = ranking[0]
    second_most = ranking[1][1] if len(ranking) > 1 else 0
    cause_G = [self._doubts.get(frozenset((cluster, winning_cluster)), "") for cluster in cluster_G]
    return Election(
      cluster_G,
      winner=cluster_G.index(winning_cluster),
      cause_G=cause_G,
      ratio=most / samples,
      margin=(most - second_most) / samples,
    )


def _stripped(answer: str | None) -> str:
  """Returns the answer without white space around it; "" if there is none."""
  return (answer or "").strip()
