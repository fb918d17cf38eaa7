"""What RL will probably do to a policy under each weak setting, by one table of rules over figures taken before RL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

GENERALISES, MEMORISES, COLLAPSES, UNKNOWN = "generalises", "memorises", "collapses", "can't say"
SURE = ("low", "medium", "high")
WEAK_SETTINGS = {
  "scarce": "N = 8 problems, true labels",
  "noisy": "70 % wrong labels (gamma 0.7)",
  "vote": "majority vote, no labels",
  "certainty": "self-certainty, no labels",
}
_LABELLED = ("scarce", "noisy", "vote")
N, K = 8, 16  # problems of the scarce setting, and those that the study judged; responses it judged of each
# What the paper reports of RL on N = 8 problems: model, domain, t_sat.
REFERENCES = (
  ("Qwen2.5-Math-1.5B", "Math", 302), ("Qwen2.5-1.5B", "Math", 170), ("Llama3.2-3B-Instruct", "Math", 55),
  ("Qwen2.5-Math-1.5B", "Science", 268), ("Qwen2.5-1.5B", "Science", 161), ("Llama3.2-3B-Instruct", "Science", 61),
  ("Qwen2.5-Math-7B", "Graph", 150), ("Llama3.1-8B-Instruct", "Graph", 29),
)  # fmt: skip
REFERENCE_SIZES = (1.5, 8.0)  # billions of weights of the smallest and the largest of these
REFERENCE_VERIFIERS = ("math", "choice", "quantum_lock", "largest_island")  # of its domains
DOMAIN_NAMES = ("math", "science", "graph", "arithmetic", "other")
SEPARATES = ("math", "arithmetic")  # where F(1)/correct tells the regimes apart: the paper's Math, and our miniature

# What to do, the stage that does it, and its options beside config, workdir and policy; words in capitals are yours.
ADVICE: dict[str, tuple[str, str, str]] = {
  "go": ("go: RL on eight problems", "rl", " --config.problems.count=8"),
  "go noisy": ("go with the labels there are, and watch true_reward where truths are known", "rl",
               " --config.problems.source=YOURS"),
  "go vote": ("go, and watch label_accuracy and vote/majority_ratio", "rl",
              " --config.rl.reward=majority_vote --config.rl.votes=16"),
  "sft": ("Thinking SFT first, which the study finds necessary", "sft", " --config.sft.thinking=True"),
  "cpt": ("CPT on the domain before that SFT: amplifies it and does not replace it", "cpt", ""),
  "format": ("teach the answer's format, or take a verifier that reads what is written", "sft", ""),
  "length": ("allow longer responses, diagnose again", "diagnose", " --config.rl.response_tokens=MORE"),
  "problems": ("other problems: keep those solved 1 to 15 times in 16", "filter", " --config.problems.count=MORE"),
  "judge": ("measure faithfulness: a judge over http, or a policy as judge", "diagnose",
            " --config.judge.name=local --config.judge.model=RUN"),
  "reference": ("diagnose a policy that is known to generalise here, and name it as the reference", "diagnose",
                " --config.diagnose.reference=RUN"),
  "more": ("judge more problems, for a narrower interval", "diagnose", " --config.judge.problems=32"),
  "reward": ("another reward: true labels for eight problems", "rl",
             " --config.problems.count=8 --config.rl.reward=verifiable"),
}  # fmt: skip


def mostly(figures: Mapping[str, float], name: str) -> bool | None:
  """Is it above one half? True or False where the whole interval says so; None: it does not, or nothing was measured.

  One half is ours and means "most of them": the paper's page gives no figure for any of these.
  """
  low, high = figures[f"{name}_low"], figures[f"{name}_high"]
  return True if low > 0.5 else False if high < 0.5 else None


class RegimeRule(NamedTuple):
  settings: Sequence[str]
  when: str
  holds: Callable[[Mapping[str, Any]], bool]
  regime: str
  sure: str  # at most
  why: str
  advice: Sequence[str]


_F = "F(1)/correct"  # of the responses that true labels pay, the share whose trace carries the answer
# Of each setting the first rule that holds counts.
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
    holds=lambda f: mostly(f, "format") is False,
    regime=UNKNOWN,
    sure="",
    why="ours: what is not read is not paid",
    advice=("format",),
  ),
  RegimeRule(
    settings=_LABELLED,
    when="most responses are cut off",
    holds=lambda f: mostly(f, "clipped") is True,
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
    holds=lambda f: mostly(f, _F) is False,
    regime=MEMORISES,
    sure="medium",
    why=("paper, Math: unfaithful before RL, early saturation (t_sat of Llama3.2-3B: 55), and worse from gamma 0.5 on"),
    advice=("sft", "cpt"),
  ),
  RegimeRule(
    settings=("vote",),
    when="most correct responses are not faithful",
    holds=lambda f: mostly(f, _F) is False,
    regime=COLLAPSES,
    sure="medium",
    why="paper: only Qwen-Math holds, the others spike and collapse",
    advice=("sft", "cpt"),
  ),
  RegimeRule(
    settings=("vote",),
    when="most votes are wrong",
    holds=lambda f: mostly(f, "vote_right") is False,
    regime=COLLAPSES,
    sure="low",
    why="ours: it would be paid for its own errors",
    advice=("cpt", "problems"),
  ),
  RegimeRule(
    settings=_LABELLED,
    when="one half lies inside of the interval of F(1)/correct",
    holds=lambda f: mostly(f, _F) is None,
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
    holds=lambda f: f["separates"] and mostly(f, "vote_right") is True,
    regime=GENERALISES,
    sure="low",
    why="paper: of all models only Qwen-Math holds",
    advice=("go vote",),
  ),
  RegimeRule(
    settings=("vote",),
    when="one half lies inside of the interval of vote_right",
    holds=lambda f: mostly(f, "vote_right") is not True,
    regime=UNKNOWN,
    sure="",
    why="ours",
    advice=("more",),
  ),
  RegimeRule(
    settings=("scarce", "noisy"),
    when="faithful elsewhere, and less diverse in what is faithful than the reference",
    holds=lambda f: f["against"] == "below",
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
    holds=lambda f: f["against"] == "below",
    regime=COLLAPSES,
    sure="low",
    why="the same",
    advice=("sft", "cpt"),
  ),
  RegimeRule(
    settings=("scarce",),
    when="faithful elsewhere, and at least as diverse in what is faithful as the reference",
    holds=lambda f: f["against"] == "not below",
    regime=GENERALISES,
    sure="low",
    why="the same",
    advice=("go",),
  ),
  RegimeRule(
    settings=("noisy", "vote"),
    when="the same",
    holds=lambda f: f["against"] == "not below",
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
  """Returns the domain of problems: `named`, or what their source and verifiers say; "other" where they say nothing."""
  verifiers = set(verifiers)
  if named:
    return named
  if verifiers & {"quantum_lock", "largest_island"}:
    return "graph"
  if "choice" in verifiers or any(word in source.lower() for word in ("science", "scp", "gpqa")):
    return "science"
  return {frozenset({"math"}): "math", frozenset({"arithmetic"}): "arithmetic"}.get(frozenset(verifiers), "other")


def against(figures: Mapping[str, float], reference: float | None) -> str:
  """Returns where the whole interval of faithful diversity lies: "below" the reference's or "not below"; else ""."""
  low, high = (figures.get(f"faithful_diversity_{end}", float("nan")) for end in ("low", "high"))
  if reference is None:
    return ""
  return "below" if high < reference else "not below" if low >= reference else ""


class Prediction(NamedTuple):
  setting: str
  regime: str
  sure: str  # low, medium, high; "" where nothing is said
  rule: int  # number in REGIME_RULES, from 1
  advice: Sequence[str]


def predict(
  figures: Mapping[str, float], near: bool, judged: int, domain: str, reference: float | None = None
) -> list[Prediction]:
  """Returns one prediction a setting, from figures with intervals; nan: not measured.

  domain: one of DOMAIN_NAMES, which says whether faithfulness separates. reference: faithful diversity of a policy
  known to generalise there, by which the domains are judged where it does not; None: there is none. Each of these
  lowers by a level how sure it is: the policy is not `near` the references, fewer than 8 problems were judged, fewer
  than 16 correct responses have a label (their interval may then be narrow by chance).
  """
  facts: dict[str, Any] = {**figures, "separates": domain in SEPARATES, "against": against(figures, reference)}
  doubts = (not near) + (judged < N) + (figures["labelled/correct"] < K)
  made = []
  for setting in WEAK_SETTINGS:
    number, rule = next((i, r) for i, r in enumerate(REGIME_RULES, 1) if setting in r.settings and r.holds(facts))
    lowered = doubts if setting in _LABELLED else not near  # the others ask no judge
    sure = SURE[max(0, SURE.index(rule.sure) - lowered)] if rule.sure else ""
    made.append(Prediction(setting, rule.regime, sure, number, rule.advice))
  return made


def is_near(billions: float, verifiers: Iterable[str]) -> bool:
  """Are size and domains among those of the study?"""
  return REFERENCE_SIZES[0] <= round(billions, 1) <= REFERENCE_SIZES[1] and set(verifiers) <= set(REFERENCE_VERIFIERS)
