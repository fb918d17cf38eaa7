"""Measures of reasoning over judged responses: faithfulness, diversity of strategies, and how far judges agree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.analysis.passk import bootstrap, mean, with_interval

FAITHFULNESS_LABELS = (1.0, 0.5, 0.0)  # the trace leads to the stated answer, does so in part, does not
SUBSETS: dict[str, Callable[[bool | None], bool]] = {
  "all": lambda correct: True,
  "correct": lambda correct: correct is True,
  "incorrect": lambda correct: correct is False,
}


def reasoning_figures(rows: Sequence[Mapping]) -> dict[str, float]:
  """Returns faithfulness, diversity and faithful diversity of one step's judged responses; nan where undefined.

  A row has `problem`, `correct` (None: unscored), `faithfulness` and `cluster` (None each: missing). Faithful diversity
  is that of the responses labelled 1, and diversity/correct that of the right ones, in the clusters that all responses
  of the problem fall into.
  """
  by_problem: dict[str, list[Mapping]] = {}
  for row in rows:
    by_problem.setdefault(row["problem"], []).append(row)
  rows_P = list(by_problem.values())
  found = faithful_shares([[(r["faithfulness"], r["correct"]) for r in some] for some in rows_P])
  found |= diversities("diversity", [[r["cluster"] for r in some] for some in rows_P])
  correct = [[r["cluster"] for r in some if r["correct"] is True] for some in rows_P]
  found |= diversities("diversity/correct", correct)
  faithful = [[r["cluster"] for r in some if r["faithfulness"] == 1] for some in rows_P]
  return found | diversities("faithful_diversity", faithful)


def faithful_shares(judged_P: Sequence[Sequence[tuple[float | None, bool | None]]]) -> dict[str, float]:
  """Shares F(1), F(0.5), F(0) of all, correct and incorrect labelled responses, from (label, correct) of each.

  Responses of all problems count alike; intervals are over the problems that have a labelled one.
  """
  found = {}
  for subset, holds in SUBSETS.items():
    labels_P = [[label for label, correct in judged if holds(correct)] for judged in judged_P]
    counts_PL = np.array([[labels.count(x) for x in FAITHFULNESS_LABELS] for labels in labels_P]).reshape(
      -1, len(FAITHFULNESS_LABELS)
    )
    counts_PL = counts_PL[counts_PL.any(1)]
    for i, label in enumerate(FAITHFULNESS_LABELS):
      found |= with_interval(f"F({label:g})/{subset}", counts_PL, functools.partial(_share, i))
    found[f"labelled/{subset}"] = float(counts_PL.sum())
    found[f"missing/{subset}"] = float(sum(labels.count(None) for labels in labels_P))
  return found


def _share(i: int, counts_PL) -> float:
  return counts_PL[:, i].sum() / counts_PL.sum()


def cluster(items: Sequence, same: Callable[[object, object], bool | None]) -> list[int | None]:
  """Cluster number of each item; see `cluster_all`."""
  return cluster_all([len(items)], lambda asked: [same(items[a], items[b]) for _, a, b in asked])[0]


def cluster_all(sizes: Sequence[int], same: Callable[[list], Sequence[bool | None]]) -> list[list[int | None]]:
  """Cluster numbers of the responses of several problems with so many each, problems side by side.

  One response after another is compared with the first member of each cluster, in order of creation: it joins the first
  that is the same, or founds one. Where an answer is missing (None) it is left out, and its number is None.
  `same` answers a list of (problem, representative, response), each a position, at most one a problem.
  """
  made: list = [None] * len(sizes)
  running = [_greedy(size) for size in sizes]
  answers: Mapping[int, bool | None] = dict.fromkeys(range(len(sizes)))
  while answers:
    asked = {}
    for problem, answer in answers.items():
      try:
        asked[problem] = running[problem].send(answer)
      except StopIteration as end:
        made[problem] = end.value
    triples = [(problem, *pair) for problem, pair in asked.items()]
    answers = dict(zip(asked, same(triples) if triples else (), strict=True))
  return made


def _greedy(size: int) -> Generator[tuple[int, int], bool | None, list[int | None]]:
  first, clusters = [], []
  for response in range(size):
    found: int | None = len(first)
    for number, representative in enumerate(first):
      same = yield representative, response
      if same is not False:
        found = None if same is None else number
        break
    if found == len(first):
      first.append(response)
    clusters.append(found)
  return clusters


def effective(clusters: Sequence[int]) -> float:
  """N_eff = exp(H), H the Shannon entropy of the clusters' shares in nats; at least one response."""
  share_K = np.unique(np.asarray(clusters), return_counts=True)[1] / len(clusters)
  return float(np.exp(-(share_K * np.log(share_K)).sum()))


def diversity(clusters: Sequence[int]) -> float:
  """Div = (N_eff - 1) / (K - 1) of K clusters, 0 where K = 1; nan without any response."""
  if not len(clusters):
    return float("nan")
  K = len(set(clusters))
  return (effective(clusters) - 1) / (K - 1) if K > 1 else 0.0


def diversities(name: str, clusters_P: Sequence[Sequence[int | None]]) -> dict[str, float]:
  """Mean Div over the problems of which something can be said, with interval, and what it is made of.

  n_eff and clusters are means over these problems; left_out counts the responses in no cluster. A problem of which half
  or more are left out is left out itself: the first response founds a cluster unasked, which is no diversity of 0.
  """
  kept_P = [[c for c in clusters if c is not None] for clusters in clusters_P]
  some_P = [kept for kept, clusters in zip(kept_P, clusters_P, strict=True) if 2 * len(kept) > len(clusters)]
  return with_interval(name, [diversity(kept) for kept in some_P]) | {
    f"{name}/n_eff": mean([effective(kept) for kept in some_P]),
    f"{name}/clusters": mean([len(set(kept)) for kept in some_P]),
    f"{name}/problems": float(len(some_P)),
    f"{name}/left_out": float(sum(map(len, clusters_P)) - sum(map(len, kept_P))),
  }


class Agreement(NamedTuple):
  """Cohen's kappa of two judges; None where undefined, and `note` says why."""

  kappa: float | None
  low: float | None
  high: float | None
  agreed: float | None  # share of the items that both labelled on which they say the same
  both: int  # items that both labelled
  missing: int  # items that one or both did not label
  note: str = ""


def agreement(pairs_P: Sequence[Sequence[tuple]]) -> Agreement:
  """Cohen's kappa, unweighted, from both judges' labels (None: missing) of each item, by problem.

  The interval redraws problems; draws in which kappa is undefined are left out of it.
  """
  both_P = [[pair for pair in pairs if None not in pair] for pairs in pairs_P]
  both = sum(map(len, both_P))
  missing = sum(map(len, pairs_P)) - both
  if not both:
    return Agreement(None, None, None, None, 0, missing, "no item was labelled by both judges")
  labels = sorted({label for pairs in both_P for pair in pairs for label in pair})
  table_PLL = np.zeros((len(both_P), len(labels), len(labels)))
  for table_LL, pairs in zip(table_PLL, both_P, strict=True):
    for a, b in pairs:
      table_LL[labels.index(a), labels.index(b)] += 1
  table_PLL = table_PLL[table_PLL.any((1, 2))]
  agreed = float(np.trace(table_PLL.sum(0)) / both)
  if len(labels) == 1:
    return Agreement(None, None, None, agreed, both, missing, "undefined: both judges gave every item the same label")
  return Agreement(_kappa(table_PLL), *bootstrap(table_PLL, _kappa), agreed, both, missing)


def _kappa(table_PLL) -> float:
  """(p_o - p_e) / (1 - p_e) of summed tables of counts; nan where p_e = 1."""
  table_LL = table_PLL.sum(0)
  n, chance = table_LL.sum(), table_LL.sum(0) @ table_LL.sum(1)
  return float((n * np.trace(table_LL) - chance) / (n * n - chance)) if n * n > chance else float("nan")
