"""The page of a diagnosis: what was measured, what RL will probably do, by which rule, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from jaxrlvr.analysis import prediction
from jaxrlvr.analysis.prediction import Prediction
from jaxrlvr.base.logbook import markdown

# What the page tells: figure ({K}: samples a problem), and what it is.
MEANINGS = {
  "usable": "share of problems that can teach: solved at least once and not always",
  "never": "share never solved",
  "always": "share always solved",
  "avg@{K}": "accuracy",
  "pass@{K}": "share of problems solved at least once",
  "format": "share of responses with an answer",
  "clipped": "share of responses cut off at rl.response_tokens",
  "vote_right": "share of majority votes that are right labels",
  "vote_margin": "lead of the vote, as a share of the samples",
  "certainty_auc": "does self-certainty tell right from wrong? 0.5: no, 1: always",
  "F(1)/all": "faithful: share of responses whose trace leads to their answer",
  "F(1)/correct": "the same among correct responses, which are what true labels pay",
  "F(0)/all": "share whose answer contradicts the trace or is a guess",
  "diversity": "of strategies, 0 to 1",
  "faithful_diversity": "of those of faithful responses",
}
MEASURED, PREDICTED = "## What was measured", "## What RL will probably do"


def sections(config: ConfigDict, diagnosis: Mapping, predictions: Sequence[Prediction]) -> dict[str, str]:
  """Returns the page's texts by their headings; `diagnosis` is what diagnosis.json holds."""
  K, figures = config.diagnose.samples, diagnosis["figures"]
  start = f"--config.model.path={config.model.path}" if config.model.path else f"--config.init={config.init}"
  return {
    "# Diagnosis before RL": _summary(config, diagnosis, start),
    MEASURED: "With 95 % intervals over problems.\n\n" + _figures(figures, K),
    f"## How many problems are solved how often in {K}": markdown(range(K + 1), [diagnosis["histogram"]]),
    PREDICTED: _domain(diagnosis["domain"], diagnosis["reference"]) + "\n\n" + _predictions(predictions),
    "## The rule": _doubts(diagnosis["near"], figures["labelled/correct"]) + "\n\n" + _rules(),
    "## References": "RL on N = 8 problems in the paper (arXiv 2604.18574): the step at which training saturates.\n\n"
    + markdown(("model", "domain", "t_sat"), prediction.REFERENCES),
    "## Next": "CONFIG is the config of this diagnosis; words in capitals are yours.\n\n```\n"
    + _commands(predictions, start)
    + "```",
  }


def _summary(config: ConfigDict, diagnosis: Mapping, start: str) -> str:
  """Which policy was sampled how, and how much of it was judged."""
  figures, judging = diagnosis["figures"], diagnosis["judging"]
  text = (
    f"`{start}`, {diagnosis['billions'] * 1e3:,.1f} million weights; "
    f"{figures['problems']:.0f} problems of `{config.problems.source}` x {config.diagnose.samples} responses at "
    f"temperature {config.rl.temperature:g}, of at most {config.rl.response_tokens} tokens, "
    f"{figures['mean_length']:.1f} in the mean. `{judging['judge']}` judged {judging['responses']} responses to "
    f"{judging['problems']} problems; {judging['missing']} of {judging['labels']} labels are missing"
  )
  return text + ("." if judging["measured"] else ": faithfulness and diversity are **not measured**.")


def _figures(figures: Mapping[str, float], K: int) -> str:
  rows = []
  for pattern, meaning in MEANINGS.items():
    name = pattern.format(K=K)
    rows.append((name, _with_interval(figures, name), meaning))
  return markdown(("figure", "value", "what it is"), rows)


def _with_interval(figures: Mapping[str, float], name: str) -> str:
  """`value [low, high]`, or that it was not measured."""
  value, low, high = (figures[name + end] for end in ("", "_low", "_high"))
  return f"{value:.3f} [{low:.3f}, {high:.3f}]" if value == value else "not measured"


def _domain(domain: str, reference: float | None) -> str:
  """By what the domain's regimes are told apart."""
  text = f"The domain is taken for {domain} (`diagnose.domain`), where "
  if domain in prediction.SEPARATES:
    return text + "faithfulness separates what generalises from what memorises."
  return (
    f"{text}a faithful policy may memorise all the same: what counts is how diverse its faithful responses are, "
    f"compared with a reference (`diagnose.reference`{'' if reference is None else f': {reference:.3f}'})."
  )


def _predictions(predictions: Sequence[Prediction]) -> str:
  rows = []
  for one in predictions:
    rule, (advice, *_) = prediction.REGIME_RULES[one.rule - 1], prediction.ADVICE[one.advice[0]]
    setting = prediction.WEAK_SETTINGS[one.setting]
    rows.append((setting, f"**{one.regime}**", one.sure or "-", rule.when, one.rule, advice))
  return markdown(("setting", "prediction", "how sure", "because", "rule", "advice"), rows)


def _doubts(near: bool, labelled: float) -> str:
  """How the rules are to be read, and what lowers how sure they are."""
  smallest, largest = prediction.REFERENCE_SIZES
  return (
    "Of each setting the first row that holds counts. *most*: the whole interval lies above one half (most are not: "
    "below). One half is ours and not calibrated, as are the rows that say so: the paper gives no figure for "
    "faithfulness, format or votes. How sure is at most what the row says, and a level lower each if size "
    f"({smallest} to {largest} billion) or verifier ({', '.join(prediction.REFERENCE_VERIFIERS)}) is none of the "
    f"references', if fewer than {prediction.N} problems were judged, and if fewer than {prediction.K} correct "
    f"responses were labelled (here {labelled:.0f}). This policy is {'' if near else '**not** '}among the references' "
    "sizes and domains."
  )


def _rules() -> str:
  rows = []
  for number, rule in enumerate(prediction.REGIME_RULES, 1):
    rows.append((number, ", ".join(rule.settings), rule.when, rule.regime, rule.sure or "-", rule.why))
  return markdown(("rule", "settings", "if", "then", "at most", "why"), rows)


def _commands(predictions: Sequence[Prediction], start: str) -> str:
  """A command for each piece of advice, behind what it is for."""
  lines = []
  for key in dict.fromkeys(key for one in predictions for key in one.advice):
    why, stage, options = prediction.ADVICE[key]
    workdir = f"runs/{key.replace(' ', '-')}"
    lines.append(f"# {why}\njaxrlvr {stage} --config=CONFIG --workdir={workdir} {start}{options}\n")
  return "".join(lines)
