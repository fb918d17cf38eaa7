"""Measures reasoning in judged responses: faithfulness, diversity of strategies, and how far two judges agree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.analysis.passk import bootstrap, figure_with_interval, mean

_FAITHFULNESS_LABELS = (1.0, 0.5, 0.0)  # the trace leads to the stated answer, does so in part, does not
# Which responses belong to a subset, by whether they are correct (None: unscored).
SUBSETS: dict[str, Callable[[bool | None], bool]] = {
  "all": lambda correct: True,
  "correct": lambda correct: correct is True,
  "incorrect": lambda correct: correct is False,
}


def reasoning_figures(rows: Sequence[Mapping]) -> dict[str, float]:
  """Returns faithfulness and diversity of strategies in one step's judged responses by name; nan where undefined.

  rows: one for each response, with `problem` (its id), `correct` (True or False; None: unscored), `faithfulness` (1,
  0.5 or 0; None: no label) and `cluster` (the number of its strategy among those of the problem; None: unknown).

  Faithfulness, for each SUBSET of all, correct, incorrect:
    F(1)/SUBSET, F(0.5)/SUBSET, F(0)/SUBSET  share of the labelled responses that have this label, pooled over problems
    labelled/SUBSET, missing/SUBSET          numbers of responses with and without a label
  Diversity, for each NAME of diversity (all responses), diversity/correct (correct ones), faithful_diversity (label 1):
    NAME                mean diversity of a problem; 0: its responses have one strategy; 1: all its strategies are
                        equally frequent
    NAME/n_eff          mean effective number of strategies of a problem
    NAME/clusters       mean number of different strategies of a problem
    NAME/problems       number of problems in these means: more than half of their responses have a cluster
    NAME/left_out       number of responses without a cluster
  The shares F and NAME also have a 95 % interval over problems, as KEY_low and KEY_high.
  """
  by_problem: dict[str, list[Mapping]] = {}
  for row in rows:
    by_problem.setdefault(row["problem"], []).append(row)
  rows_P = list(by_problem.values())
  figures = _faithful_shares([_labels_and_correctness(problem_rows) for problem_rows in rows_P])
  figures |= diversity_figures("diversity", [_clusters(problem_rows) for problem_rows in rows_P])
  figures |= diversity_figures("diversity/correct", [_clusters_of_correct(problem_rows) for problem_rows in rows_P])
  figures |= diversity_figures("faithful_diversity", [_clusters_of_faithful(problem_rows) for problem_rows in rows_P])
  return figures


def _labels_and_correctness(rows: Sequence[Mapping]) -> list[tuple[float | None, bool | None]]:
  return [(row["faithfulness"], row["correct"]) for row in rows]


def _clusters(rows: Sequence[Mapping]) -> list[int | None]:
  return [row["cluster"] for row in rows]


def _clusters_of_correct(rows: Sequence[Mapping]) -> list[int | None]:
  return [row["cluster"] for row in rows if row["correct"] is True]


def _clusters_of_faithful(rows: Sequence[Mapping]) -> list[int | None]:
  return [row["cluster"] for row in rows if row["faithfulness"] == 1]


def _faithful_shares(judged_P: Sequence[Sequence[tuple[float | None, bool | None]]]) -> dict[str, float]:
  """Returns the shares of responses with each faithfulness label, among all, correct and incorrect responses.

  judged_P: for each problem, (label, correct) of each response; None where the label is missing, or the response
  unscored. Keys, for each SUBSET (all, correct, incorrect): F(1)/SUBSET, F(0.5)/SUBSET and F(0)/SUBSET with intervals
  as ..._low and ..._high, labelled/SUBSET and missing/SUBSET (numbers of responses with and without a label). All
  labelled responses count alike, whatever their problem; intervals redraw the problems that have one.
  """
  figures = {}
  for subset, holds in SUBSETS.items():
    counts_PL = np.zeros((len(judged_P), len(_FAITHFULNESS_LABELS)), np.int64)
    missing = 0
    for problem, judged in enumerate(judged_P):
      labels = [label for label, correct in judged if holds(correct)]
      counts_PL[problem] = [labels.count(label) for label in _FAITHFULNESS_LABELS]
      missing += labels.count(None)
    counts_PL = counts_PL[counts_PL.any(1)]
    for column, label in enumerate(_FAITHFULNESS_LABELS):
      share = functools.partial(_share_of_column, column)
      figures |= figure_with_interval(f"F({label:g})/{subset}", counts_PL, share)
    figures[f"labelled/{subset}"] = float(counts_PL.sum())
    figures[f"missing/{subset}"] = float(missing)
  return figures


def _share_of_column(column: int, counts_PL: np.ndarray) -> float:
  return np.sum(counts_PL[:, column]) / np.sum(counts_PL)


def cluster(items: Sequence, same: Callable[[object, object], bool | None]) -> list[int | None]:
  """Clusters the responses to one problem by strategy, and returns the number of each response's cluster, from 0.

  items: the responses. same(a, b): returns whether response b uses the strategy of a, the first member of a cluster;
  None where that is not known. Responses are taken in order. Each is compared with the clusters in the order in which
  they were created, until `same` is True (it joins that cluster) or None (it belongs to no cluster, and its number is
  None). If every answer is False, it creates a cluster. [] for no response.
  """

  def answer_questions(questions):
    return [same(items[representative], items[response]) for _, representative, response in questions]

  return cluster_all([len(items)], answer_questions)[0]


def cluster_all(sizes: Sequence[int], same: Callable[[list], Sequence[bool | None]]) -> list[list[int | None]]:
  """Clusters the responses to each of several problems by strategy, in rounds that ask about all problems at once.

  sizes: the number of responses to each problem. same: takes the questions of a round and returns their answers in the
  same order. A question is (problem, representative, response): the index of the problem, and the indices of two of its
  responses, the first of which created a cluster. The answer is True if both use the same strategy, False if not, None
  if that is not known. A round has at most one question about a problem. Returns for each problem the cluster number,
  from 0, of each response. ValueError where `same` returns another number of answers than it got questions.

  Responses are taken in order. Each is compared with the clusters in the order in which they were created, until an
  answer is True (it joins that cluster) or None (it belongs to no cluster, and its number is None). If every answer is
  False, it creates a cluster.
  """
  numbers_P: list = [None] * len(sizes)
  clusterings = [_cluster_greedily(size) for size in sizes]
  answers: Mapping[int, bool | None] = dict.fromkeys(range(len(sizes)))
  while answers:
    questions = []
    for problem, answer in answers.items():
      try:
        representative, response = clusterings[problem].send(answer)
        questions.append((problem, representative, response))
      except StopIteration as end:
        numbers_P[problem] = end.value
    replies = same(questions) if questions else ()
    answers = {problem: reply for (problem, *_), reply in zip(questions, replies, strict=True)}
  return numbers_P


def _cluster_greedily(size: int) -> Generator[tuple[int, int], bool | None, list[int | None]]:
  """Clusters one problem's responses: yields (representative, response) to ask about, and takes the answer.

  Returns the cluster number of each response, None for one about which an answer was None.
  """
  representatives: list[int] = []
  numbers: list[int | None] = []
  for response in range(size):
    number: int | None = len(representatives)  # of a new cluster, unless the response joins one
    for existing, representative in enumerate(representatives):
      same = yield representative, response
      if same is None:
        number = None
        break
      if same:
        number = existing
        break
    if number == len(representatives):
      representatives.append(response)
    numbers.append(number)
  return numbers


def _effective_clusters(clusters: Sequence[int]) -> float:
  """Returns the effective number of clusters exp(H), H the Shannon entropy of the clusters' shares in nats.

  clusters: the cluster number of each response, at least one.
  """
  _, counts_K = np.unique(np.asarray(clusters), return_counts=True)
  share_K = counts_K / len(clusters)
  return float(np.exp(-(share_K * np.log(share_K)).sum()))


def diversity(clusters: Sequence[int]) -> float:
  """Returns the diversity (N_eff - 1) / (K - 1) of one problem's responses, which fall into K clusters.

  clusters: the cluster number of each response. N_eff = exp(H) is the effective number of clusters, H the entropy of
  their shares. The result is 0 for K = 1 (all responses have one strategy), 1 where all K > 1 clusters are equally
  large, and nan without a response.
  """
  if not len(clusters):
    return float("nan")
  K = len(set(clusters))
  if K == 1:
    return 0.0
  return (_effective_clusters(clusters) - 1) / (K - 1)


def diversity_figures(name: str, clusters_P: Sequence[Sequence[int | None]]) -> dict[str, float]:
  """Returns the mean diversity of strategies over problems as NAME, NAME_low, NAME_high, and what it is made of.

  clusters_P: for each problem the cluster number of each response, None for a response in no cluster. The other keys:
    NAME/n_eff      mean effective number of clusters of a problem
    NAME/clusters   mean number of clusters of a problem
    NAME/problems   number of problems in these means
    NAME/left_out   number of responses in no cluster, over all problems
  A problem is in the means if more than half of its responses are in a cluster: its first response creates one without
  a question, so that under a judge that never answers its diversity would be 0. Means are nan without such a problem.
  """
  left_out = 0
  counting_P = []
  for clusters in clusters_P:
    clustered = [number for number in clusters if number is not None]
    left_out += len(clusters) - len(clustered)
    if 2 * len(clustered) > len(clusters):
      counting_P.append(clustered)
  figures = figure_with_interval(name, [diversity(clustered) for clustered in counting_P])
  figures[f"{name}/n_eff"] = mean([_effective_clusters(clustered) for clustered in counting_P])
  figures[f"{name}/clusters"] = mean([len(set(clustered)) for clustered in counting_P])
  figures[f"{name}/problems"] = float(len(counting_P))
  figures[f"{name}/left_out"] = float(left_out)
  return figures


class Agreement(NamedTuple):
  """How far two judges agree on labels: Cohen's kappa with its 95 % interval over problems, and its counts."""

  kappa: float | None  # 1: they always agree; 0: as often as by chance; below 0: less often
  low: float | None  # the lower end of its 95 % interval; None where kappa is None, nan where no draw defines it
  high: float | None  # the upper end of its interval, likewise
  agreed: float | None  # share of the items labelled by both judges to which they gave the same label; None: no item
  both: int  # items labelled by both judges
  missing: int  # items that at least one judge did not label
  note: str = ""  # why kappa is None; "": it is defined


def agreement(pairs_P: Sequence[Sequence[tuple]]) -> Agreement:
  """Returns how far two judges agree: Cohen's kappa (unweighted), its interval, the share of equal labels, and counts.

  pairs_P: for each problem, (label by the first judge, label by the second) of each judged item, such as a response or
  a pair of responses. Labels are values that can be compared and sorted, such as 1, 0.5 and 0; None: missing. Items
  that lack a label count only in `missing`. kappa, low and high are None, and `note` says why, where no item was
  labelled by both, or both judges gave every item the same label. The interval redraws problems; draws in which kappa
  is undefined are left out of it.
  """
  both_P = [_without_missing(pairs) for pairs in pairs_P]
  both = sum(map(len, both_P))
  missing = sum(map(len, pairs_P)) - both
  if not both:
    return Agreement(None, None, None, None, 0, missing, "no item was labelled by both judges")
  table_PLL = _tables_of_labels(both_P)
  agreed = float(np.trace(table_PLL.sum(0)) / both)
  if table_PLL.shape[1] == 1:
    return Agreement(None, None, None, agreed, both, missing, "undefined: both judges gave every item the same label")
  low, high = bootstrap(table_PLL, _kappa)
  return Agreement(_kappa(table_PLL), low, high, agreed, both, missing)


def _without_missing(pairs: Sequence[tuple]) -> list[tuple]:
  """Returns the pairs of which both labels are there."""
  return [pair for pair in pairs if None not in pair]


def _tables_of_labels(pairs_P: Sequence[Sequence[tuple]]) -> np.ndarray:
  """Returns [P, L, L], of each problem with items how many of them have label a by the first and b by the second."""
  labels = sorted({label for pairs in pairs_P for pair in pairs for label in pair})
  table_PLL = np.zeros((len(pairs_P), len(labels), len(labels)))
  for table_LL, pairs in zip(table_PLL, pairs_P, strict=True):
    for first, second in pairs:
      table_LL[labels.index(first), labels.index(second)] += 1
  return table_PLL[table_PLL.any((1, 2))]


def _kappa(table_PLL: np.ndarray) -> float:
  """Returns (p_o - p_e) / (1 - p_e) of the tables' sum, p_o the observed and p_e the expected agreement.

  nan where p_e = 1.
  """
  table_LL = table_PLL.sum(0)
  n = table_LL.sum()
  expected = table_LL.sum(0) @ table_LL.sum(1)  # p_e times n squared
  if n * n <= expected:
    return float("nan")
  return float((n * np.trace(table_LL) - expected) / (n * n - expected))
