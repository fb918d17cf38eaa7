"""Writes the page of a diagnosis: what was measured, what RL will probably do, by which rule, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from jaxrlvr.analysis import prediction
from jaxrlvr.analysis.prediction import Prediction
from jaxrlvr.base.logbook import markdown

# The figures of the page with what each is; {K} stands for the samples of each problem.
MEANINGS = {
  "usable": "share of problems that can teach: solved at least once and not always",
  "never": "share of problems never solved",
  "always": "share of problems always solved",
  "avg@{K}": "accuracy",
  "pass@{K}": "share of problems solved at least once",
  "format": "share of responses with an answer",
  "clipped": "share of responses cut off at rl.response_tokens",
  "vote_right": "share of majority votes that are right labels",
  "vote_margin": "lead of the most frequent answer over the next, as a share of the samples",
  "certainty_auc": "does self-certainty tell right from wrong? 0.5: no, 1: always",
  "F(1)/all": "faithful: share of responses whose trace leads to their answer",
  "F(1)/correct": "the same among correct responses, which are what true labels pay",
  "F(0)/all": "share of responses whose answer contradicts the trace or is a guess",
  "diversity": "diversity of strategies, from 0 to 1",
  "faithful_diversity": "diversity of strategies of faithful responses",
}
MEASURED, PREDICTED = "## What was measured", "## What RL will probably do"


def sections(config: ConfigDict, diagnosis: Mapping, predictions: Sequence[Prediction]) -> dict[str, str]:
  """Returns the page as {heading: text} in Markdown.

  diagnosis: what diagnosis.json holds (domain, reference, figures, histogram, near, billions, judging). predictions:
  what is predicted for each weak setting.
  """
  K, figures = config.diagnose.samples, diagnosis["figures"]
  start = f"--config.model.path={config.model.path}" if config.model.path else f"--config.init={config.init}"
  measured = "With 95 % intervals over problems.\n\n" + _table_of_figures(figures, K)
  predicted = _domain(diagnosis["domain"], diagnosis["reference"]) + "\n\n" + _table_of_predictions(predictions)
  rule = _how_to_read_the_rules(diagnosis["near"], figures["labelled/correct"]) + "\n\n" + _table_of_rules()
  references = "RL on N = 8 problems in the paper (arXiv 2604.18574): the step at which training saturates.\n\n"
  references += markdown(("model", "domain", "t_sat"), prediction.REFERENCES)
  following = "CONFIG is the config of this diagnosis; replace the words in capitals.\n\n"
  following += f"```\n{_commands(predictions, start)}```"
  return {
    "# Diagnosis before RL": _summary(config, diagnosis, start),
    MEASURED: measured,
    f"## How many problems are solved how often in {K}": markdown(range(K + 1), [diagnosis["histogram"]]),
    PREDICTED: predicted,
    "## The rule": rule,
    "## References": references,
    "## Next": following,
  }


def _summary(config: ConfigDict, diagnosis: Mapping, start: str) -> str:
  """Says which policy was sampled and how, and how many of its responses were judged. start: names the policy."""
  figures, judging = diagnosis["figures"], diagnosis["judging"]
  text = (
    f"`{start}`, {diagnosis['billions'] * 1e3:,.1f} million weights; "
    f"{figures['problems']:.0f} problems of `{config.problems.source}` x {config.diagnose.samples} responses at "
    f"temperature {config.rl.temperature:g}, of at most {config.rl.response_tokens} tokens, "
    f"{figures['mean_length']:.1f} in the mean. `{judging['judge']}` judged {judging['responses']} responses to "
    f"{judging['problems']} problems; {judging['missing']} of {judging['labels']} labels are missing"
  )
  if judging["measured"]:
    return text + "."
  return text + ": faithfulness and diversity are **not measured**."


def _table_of_figures(figures: Mapping[str, float], K: int) -> str:
  rows = []
  for pattern, meaning in MEANINGS.items():
    name = pattern.format(K=K)
    rows.append((name, _with_interval(figures, name), meaning))
  return markdown(("figure", "value", "what it is"), rows)


def _with_interval(figures: Mapping[str, float], name: str) -> str:
  """Returns a figure as `value [low, high]`, or says that it was not measured."""
  value, low, high = (figures[name + end] for end in ("", "_low", "_high"))
  is_measured = value == value  # nan is not
  return f"{value:.3f} [{low:.3f}, {high:.3f}]" if is_measured else "not measured"


def _domain(domain: str, reference: float | None) -> str:
  """Says which domain the problems are taken for, and by which figure its regimes are told apart."""
  text = f"The domain is taken for {domain} (`diagnose.domain`), where "
  if domain in prediction.SEPARATES:
    return text + "faithfulness separates what generalises from what memorises."
  measured = "" if reference is None else f": {reference:.3f}"
  return (
    f"{text}a faithful policy may memorise all the same: what counts is how diverse its faithful responses are, "
    f"compared with a reference (`diagnose.reference`{measured})."
  )


def _table_of_predictions(predictions: Sequence[Prediction]) -> str:
  rows = []
  for predicted in predictions:
    setting = prediction.WEAK_SETTINGS[predicted.setting]
    rule = prediction.REGIME_RULES[predicted.rule - 1]
    advice = prediction.ADVICE[predicted.advice[0]]
    rows.append((setting, f"**{predicted.regime}**", predicted.sure or "-", rule.when, predicted.rule, advice.what))
  return markdown(("setting", "prediction", "how sure", "because", "rule", "advice"), rows)


def _how_to_read_the_rules(near: bool, labelled: float) -> str:
  """Explains the table of rules, and what makes a prediction less sure.

  near: whether the policy resembles the references. labelled: correct responses that have a label.
  """
  smallest, largest = prediction.REFERENCE_SIZES
  return (
    "For each setting the first row whose condition holds decides. *Most* means that the whole interval lies above one "
    "half (*most are not*: below). One half is our own threshold and not calibrated, as are the rows marked *ours*: "
    "the paper gives no figure for faithfulness, format or votes. A prediction is at most as sure as its row says. It "
    f"is one level less sure for each of these: the size is not among the references' ({smallest} to {largest} "
    f"billion) or a verifier is not ({', '.join(prediction.REFERENCE_VERIFIERS)}); fewer than {prediction.N} problems "
    f"were judged; fewer than {prediction.K} correct responses were labelled (here {labelled:.0f}). This policy is "
    f"{'' if near else '**not** '}among the references' sizes and domains."
  )


def _table_of_rules() -> str:
  rows = []
  for number, rule in enumerate(prediction.REGIME_RULES, 1):
    rows.append((number, ", ".join(rule.settings), rule.when, rule.regime, rule.sure or "-", rule.why))
  return markdown(("rule", "settings", "if", "then", "at most", "why"), rows)


def _commands(predictions: Sequence[Prediction], start: str) -> str:
  """Returns a command for each piece of advice, each below a comment that says what it is for."""
  keys = dict.fromkeys(key for predicted in predictions for key in predicted.advice)
  lines = ""
  for key in keys:
    advice = prediction.ADVICE[key]
    workdir = f"runs/{key.replace(' ', '-')}"
    lines += f"# {advice.what}\njaxrlvr {advice.stage} --config=CONFIG --workdir={workdir} {start}{advice.options}\n"
  return lines
