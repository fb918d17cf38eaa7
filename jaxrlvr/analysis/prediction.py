"""Predicts what RL will do to a policy under each weak setting, by one table of rules over figures taken before RL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

GENERALISES, MEMORISES, COLLAPSES, UNKNOWN = "generalises", "memorises", "collapses", "can't say"
_SURE = ("low", "medium", "high")  # how sure a prediction can be, ascending
# The weak settings that are predicted. Keys: Prediction.setting; values: what the page calls them.
WEAK_SETTINGS = {
  "scarce": "N = 8 problems, true labels",
  "noisy": "70 % wrong labels (gamma 0.7)",
  "vote": "majority vote, no labels",
  "certainty": "self-certainty, no labels",
}
_LABELLED = ("scarce", "noisy", "vote")  # the settings that pay agreement with a label, given or voted
N = 8  # training problems of the scarce setting, and problems whose responses the study judged
K = 16  # responses that the study judged of each problem


class Reference(NamedTuple):
  """One result of the paper for RL on N = 8 problems, beside which the page of a diagnosis shows a policy."""

  model: str  # the model's name, as the paper gives it
  domain: str  # "Math", "Science" or "Graph"
  t_sat: int  # the step at which training saturates


REFERENCES = (
  Reference("Qwen2.5-Math-1.5B", "Math", 302),
  Reference("Qwen2.5-1.5B", "Math", 170),
  Reference("Llama3.2-3B-Instruct", "Math", 55),
  Reference("Qwen2.5-Math-1.5B", "Science", 268),
  Reference("Qwen2.5-1.5B", "Science", 161),
  Reference("Llama3.2-3B-Instruct", "Science", 61),
  Reference("Qwen2.5-Math-7B", "Graph", 150),
  Reference("Llama3.1-8B-Instruct", "Graph", 29),
)
REFERENCE_SIZES = (1.5, 8.0)  # billions of weights of the smallest and the largest reference model
REFERENCE_VERIFIERS = ("math", "choice", "quantum_lock", "largest_island")  # of the references' domains
DOMAIN_NAMES = ("math", "science", "graph", "arithmetic", "other")
# Domains in which F(1)/correct tells the regimes apart: math in the paper, arithmetic in our miniature.
SEPARATES = ("math", "arithmetic")


class Advice(NamedTuple):
  """What to do next, and the command that does it."""

  what: str  # the advice in words, such as "go: RL on eight problems"
  stage: str  # the stage that the command runs, such as "rl"
  # Options of the command behind --config, --workdir and the policy, such as " --config.problems.count=8"; "": none.
  # The user replaces words in capitals, as in " --config.judge.model=RUN".
  options: str


ADVICE: dict[str, Advice] = {
  "go": Advice("go: RL on eight problems", "rl", " --config.problems.count=8"),
  "go noisy": Advice(
    "go with the labels there are, and watch true_reward where truths are known",
    "rl",
    " --config.problems.source=YOURS",
  ),
  "go vote": Advice(
    "go, and watch label_accuracy and vote/majority_ratio",
    "rl",
    " --config.rl.reward=majority_vote --config.rl.votes=16",
  ),
  "sft": Advice("Thinking SFT first, which the study finds necessary", "sft", " --config.sft.thinking=True"),
  "cpt": Advice("CPT on the domain before that SFT: amplifies it and does not replace it", "cpt", ""),
  "format": Advice("teach the answer's format, or take a verifier that reads what is written", "sft", ""),
  "length": Advice("allow longer responses, diagnose again", "diagnose", " --config.rl.response_tokens=MORE"),
  "problems": Advice(
    "other problems: keep those solved 1 to 15 times in 16",
    "filter",
    " --config.problems.count=MORE",
  ),
  "judge": Advice(
    "measure faithfulness: a judge over http, or a policy as judge",
    "diagnose",
    " --config.judge.name=local --config.judge.model=RUN",
  ),
  "reference": Advice(
    "diagnose a policy that is known to generalise here, and name it as the reference",
    "diagnose",
    " --config.diagnose.reference=RUN",
  ),
  "more": Advice("judge more problems, for a narrower interval", "diagnose", " --config.judge.problems=32"),
  "reward": Advice(
    "another reward: true labels for eight problems",
    "rl",
    " --config.problems.count=8 --config.rl.reward=verifiable",
  ),
}


def lies_above_half(figures: Mapping[str, float], name: str) -> bool | None:
  """Returns True if the interval of a share lies above 0.5, False if it lies below, and None if it holds 0.5.

  figures: holds the ends of the interval of figure `name` as NAME_low and NAME_high (KeyError without them). An end of
  nan means not measured and gives None. 0.5 stands for "most of them" and is our own threshold: the paper gives none.
  """
  low, high = figures[f"{name}_low"], figures[f"{name}_high"]
  if low > 0.5:
    return True
  if high < 0.5:
    return False
  return None


class RegimeRule(NamedTuple):
  """One row of the table by which the regime of a policy under RL is predicted."""

  settings: Sequence[str]  # the keys of WEAK_SETTINGS that the rule applies to: "scarce", "noisy", "vote", "certainty"
  when: str  # the condition of `holds` in words, as diagnosis.md shows it
  # Returns whether the rule applies. It takes the `figures` of `predict` by name and two more entries: "separates"
  # (bool: the domain is in SEPARATES) and "against_reference" ("below", "not below" or "" for unknown).
  holds: Callable[[Mapping[str, Any]], bool]
  regime: str  # what is then predicted: "generalises", "memorises", "collapses" or "can't say"
  sure: str  # how sure that is at most: "low", "medium" or "high"; "" where `regime` is "can't say"
  why: str  # the reason behind its source, "paper" or "ours"; "the same" as that of the rule before
  advice: Sequence[str]  # keys of ADVICE, such as "go" or "sft", the most important first


_F = "F(1)/correct"  # share of the correct responses, which true labels pay, whose trace leads to the answer
# The rules in order: for each setting the first one that holds decides.
REGIME_RULES = (
  RegimeRule(
    settings=("certainty",),
    when="in any case",
    holds=lambda f: True,
    regime=COLLAPSES,
    sure="high",
    why="paper: self-certainty collapses everywhere",
    advice=("reward",),
  ),
  RegimeRule(
    settings=_LABELLED,
    when="most responses hold no answer",
    holds=lambda f: lies_above_half(f, "format") is False,
    regime=UNKNOWN,
    sure="",
    why="ours: what is not read is not paid",
    advice=("format",),
  ),
  RegimeRule(
    settings=_LABELLED,
    when="most responses are cut off",
    holds=lambda f: lies_above_half(f, "clipped") is True,
    regime=UNKNOWN,
    sure="",
    why="ours: what is cut off is not paid",
    advice=("length",),
  ),
  RegimeRule(
    settings=_LABELLED,
    when="fewer than 8 problems are solved at least once and not always",
    holds=lambda f: f["usable_problems"] < N,
    regime=UNKNOWN,
    sure="",
    why="paper: problems kept have solve@16 from 1 to 15, the smallest set has 8",
    advice=("problems", "cpt"),
  ),
  RegimeRule(
    settings=_LABELLED,
    when="faithfulness of correct responses was not measured",
    holds=lambda f: not f[_F] >= 0,
    regime=UNKNOWN,
    sure="",
    why="paper: it, or the diversity of what is faithful, tells the regimes apart",
    advice=("judge",),
  ),
  RegimeRule(
    settings=("scarce", "noisy"),
    when="most correct responses are not faithful",
    holds=lambda f: lies_above_half(f, _F) is False,
    regime=MEMORISES,
    sure="medium",
    why="paper, Math: unfaithful before RL, early saturation (t_sat of Llama3.2-3B: 55), and worse from gamma 0.5 on",
    advice=("sft", "cpt"),
  ),
  RegimeRule(
    settings=("vote",),
    when="most correct responses are not faithful",
    holds=lambda f: lies_above_half(f, _F) is False,
    regime=COLLAPSES,
    sure="medium",
    why="paper: only Qwen-Math holds, the others spike and collapse",
    advice=("sft", "cpt"),
  ),
  RegimeRule(
    settings=("vote",),
    when="most votes are wrong",
    holds=lambda f: lies_above_half(f, "vote_right") is False,
    regime=COLLAPSES,
    sure="low",
    why="ours: it would be paid for its own errors",
    advice=("cpt", "problems"),
  ),
  RegimeRule(
    settings=_LABELLED,
    when="one half lies inside of the interval of F(1)/correct",
    holds=lambda f: lies_above_half(f, _F) is None,
    regime=UNKNOWN,
    sure="",
    why="ours",
    advice=("more",),
  ),
  RegimeRule(
    settings=("scarce",),
    when="most correct responses are faithful, in a domain where that separates",
    holds=lambda f: f["separates"],
    regime=GENERALISES,
    sure="medium",
    why="paper, Math: faithful before RL, long pre-saturation phase, which generalises from 8 problems",
    advice=("go",),
  ),
  RegimeRule(
    settings=("noisy",),
    when="the same",
    holds=lambda f: f["separates"],
    regime=GENERALISES,
    sure="low",
    why="paper, Math: Qwen holds to gamma 0.7",
    advice=("go noisy",),
  ),
  RegimeRule(
    settings=("vote",),
    when="the same, and most votes are right",
    holds=lambda f: f["separates"] and lies_above_half(f, "vote_right") is True,
    regime=GENERALISES,
    sure="low",
    why="paper: of all models only Qwen-Math holds",
    advice=("go vote",),
  ),
  RegimeRule(
    settings=("vote",),
    when="one half lies inside of the interval of vote_right",
    holds=lambda f: lies_above_half(f, "vote_right") is not True,
    regime=UNKNOWN,
    sure="",
    why="ours",
    advice=("more",),
  ),
  RegimeRule(
    settings=("scarce", "noisy"),
    when="faithful elsewhere, and less diverse in what is faithful than the reference",
    holds=lambda f: f["against_reference"] == "below",
    regime=MEMORISES,
    sure="low",
    why=(
      "paper, Science and Graph: all are faithful, and the model that generalises is the one whose faithful "
      "responses are diverse"
    ),
    advice=("sft", "cpt"),
  ),
  RegimeRule(
    settings=("vote",),
    when="the same",
    holds=lambda f: f["against_reference"] == "below",
    regime=COLLAPSES,
    sure="low",
    why="the same",
    advice=("sft", "cpt"),
  ),
  RegimeRule(
    settings=("scarce",),
    when="faithful elsewhere, and at least as diverse in what is faithful as the reference",
    holds=lambda f: f["against_reference"] == "not below",
    regime=GENERALISES,
    sure="low",
    why="the same",
    advice=("go",),
  ),
  RegimeRule(
    settings=("noisy", "vote"),
    when="the same",
    holds=lambda f: f["against_reference"] == "not below",
    regime=UNKNOWN,
    sure="",
    why="paper: Qwen holds to gamma 0.7 on Science and degrades at 0.5 on Graph; votes held for Qwen-Math only",
    advice=("go noisy",),
  ),
  RegimeRule(
    settings=_LABELLED,
    when="faithful elsewhere, and no reference says how diverse that is to be",
    holds=lambda f: True,
    regime=UNKNOWN,
    sure="",
    why="paper, Science and Graph: aligned shares are high for all models, and tell nothing",
    advice=("reference",),
  ),
)


def domain_of(named: str, source: str, verifiers: Iterable[str]) -> str:
  """Returns the domain of the problems: `named` unless it is "", otherwise a guess.

  named: returned unchecked. source: the problems' file or data set. verifiers: the names of the problems' verifiers.
  The first rule that holds decides:
    graph       a verifier is "quantum_lock" or "largest_island"
    science     a verifier is "choice", or `source` contains "science", "scp" or "gpqa" in any case
    math        the only verifier is "math"
    arithmetic  the only verifier is "arithmetic"
    other       otherwise
  """
  verifiers = set(verifiers)
  if named:
    return named
  if verifiers & {"quantum_lock", "largest_island"}:
    return "graph"
  if "choice" in verifiers or any(word in source.lower() for word in ("science", "scp", "gpqa")):
    return "science"
  if verifiers == {"math"}:
    return "math"
  if verifiers == {"arithmetic"}:
    return "arithmetic"
  return "other"


def compare_with_reference(figures: Mapping[str, float], reference: float | None) -> str:
  """Compares the interval of a policy's faithful diversity with a reference value: returns "below", "not below" or "".

  figures: holds the interval's ends as faithful_diversity_low and faithful_diversity_high; absent or nan: not measured.
  reference: the faithful diversity to compare with, from 0 to 1; None if there is none. "below": the upper end lies
  below the reference; "not below": the lower end is at least the reference; "": neither, or one of the two is not
  measured.
  """
  if reference is None:
    return ""
  low, high = (figures.get(f"faithful_diversity_{end}", float("nan")) for end in ("low", "high"))
  if high < reference:
    return "below"
  if low >= reference:
    return "not below"
  return ""


class Prediction(NamedTuple):
  """What RL will probably do to a policy in one weak setting."""

  setting: str  # "scarce", "noisy", "vote" or "certainty": the keys of WEAK_SETTINGS
  regime: str  # "generalises", "memorises", "collapses" or "can't say"
  sure: str  # "low", "medium" or "high"; "" where `regime` is "can't say"
  rule: int  # number of the rule in REGIME_RULES that decided, counted from 1
  advice: Sequence[str]  # keys of ADVICE, such as "go" or "sft", the most important first


def predict(
  figures: Mapping[str, float], like_references: bool, judged_problems: int, domain: str, reference: float | None = None
) -> list[Prediction]:
  """Predicts what RL will do to a policy in each weak setting: scarce, noisy, vote and certainty, in this order.

  figures: the figures of `pre_rl.measure` and of `reasoning.reasoning_figures` in one mapping. It needs
  usable_problems, F(1)/correct, labelled/correct, and the ends NAME_low and NAME_high of format, clipped, vote_right
  and F(1)/correct (KeyError for an absent one that a rule reads; nan: not measured); faithful_diversity_low and _high
  may be absent. like_references: whether the policy is like those that the paper reports on (`resembles_references`).
  judged_problems: the number of problems whose responses were judged. domain: one of DOMAIN_NAMES; in "math" and
  "arithmetic" faithfulness tells the regimes apart, elsewhere faithful diversity does, compared with `reference`.
  reference: the faithful diversity of a policy that is known to generalise in this domain; None if there is none.

  For each setting the first rule of REGIME_RULES that holds gives the regime. It is one level less sure ("high",
  "medium", "low", which is the least) for each of these: the policy is not like the references; fewer than 8 problems
  were judged; fewer than 16 correct responses are labelled. The last two do not count under "certainty", whose rule
  reads no judged figure.
  """
  facts: dict[str, Any] = dict(figures)
  facts["separates"] = domain in SEPARATES
  facts["against_reference"] = compare_with_reference(figures, reference)
  predictions = []
  for setting in WEAK_SETTINGS:
    number, rule = _first_rule(setting, facts)
    doubts = [not like_references]
    if setting in _LABELLED:
      doubts += [judged_problems < N, figures["labelled/correct"] < K]
    sure = ""
    if rule.sure:
      sure = _SURE[max(0, _SURE.index(rule.sure) - sum(doubts))]
    predictions.append(Prediction(setting, rule.regime, sure, number, rule.advice))
  return predictions


def _first_rule(setting: str, facts: Mapping[str, Any]) -> tuple[int, RegimeRule]:
  """Returns the first rule of the setting that holds, behind its number in REGIME_RULES counted from 1."""
  for number, rule in enumerate(REGIME_RULES, 1):
    if setting in rule.settings and rule.holds(facts):
      return number, rule
  raise AssertionError(f"no rule of REGIME_RULES holds for {setting!r}")


def resembles_references(billions: float, verifiers: Iterable[str]) -> bool:
  """Returns whether a policy and its problems are like those of REFERENCES, on which the rules of prediction rest.

  billions: the policy's weights in billions; rounded to one decimal it must lie from 1.5 to 8.0. verifiers: names of
  the problems' verifiers, all of which must be among "math", "choice", "quantum_lock" and "largest_island".
  """
  smallest, largest = REFERENCE_SIZES
  return smallest <= round(billions, 1) <= largest and set(verifiers) <= set(REFERENCE_VERIFIERS)
