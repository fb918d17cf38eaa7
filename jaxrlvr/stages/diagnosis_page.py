"""Writes the page of a diagnosis: what was measured, what RL will probably do, by which rule, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from jaxrlvr.analysis import prediction
from jaxrlvr.analysis.prediction import Advice, Prediction
from jaxrlvr.base import object_store
from jaxrlvr.base.logbook import markdown

# The figures of the page with what each is; {K} stands for the samples of each problem.
_MEANINGS = {
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
# Keys of `problems` that say how rows become problems; held-out problems of the same source need the same.
_KEYS_OF_ROWS = ("columns", "system", "verifier")


def sections(
  config: ConfigDict, diagnosis: Mapping, predictions: Sequence[Prediction], config_file: str, names_held_out: bool
) -> dict[str, str]:
  """Returns the page of a diagnosis as {heading: text} in Markdown, in the order of the page.

  The headings, with their #, are "# Diagnosis before RL", MEASURED, "## How many problems are solved how often in K",
  PREDICTED, "## The rule", "## References" and "## Next" (commands that can be pasted). diagnosis: the content of
  diagnosis.json (keys: see `diagnose.diagnose`), with nan in the place of null. predictions: those of
  `prediction.predict`. config_file: path of the diagnosis's config.json, which the commands start from. names_held_out:
  whether the config says which problems are held out; if not, commands that train with RL name them.
  """
  K, figures = config.diagnose.samples, diagnosis["figures"]
  keys = [key for key in ("init", "model.path", "model.adapter") if config[key]] or ["init"]
  start = " ".join(f"--config.{key}={config[key]}" for key in keys)
  measured = "With 95 % intervals over problems.\n\n" + _table_of_figures(figures, K)
  predicted = _domain(diagnosis["domain"], diagnosis["reference"]) + "\n\n" + _table_of_predictions(predictions)
  rule = _how_to_read_the_rules(diagnosis["near"], figures["labelled/correct"]) + "\n\n" + _table_of_rules()
  references = "RL on N = 8 problems in the paper (arXiv 2604.18574): the step at which training saturates.\n\n"
  references += markdown(("model", "domain", "t_sat"), prediction.REFERENCES)
  following = "Commands start from this diagnosis's policy and config. Replace words in capitals, if any."
  if object_store.is_remote(config_file):
    following += " Copy the config from the object store first, and name the copy."
  following += f"\n\n```\n{_commands(config, diagnosis, predictions, config_file, names_held_out)}```"
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
    compared = figures["diversity/problems"] > 0
    return text + ("." if compared else ". It compared no strategies: diversity is **not measured**.")
  return text + ": faithfulness and diversity are **not measured**."


def _table_of_figures(figures: Mapping[str, float], K: int) -> str:
  rows = []
  for pattern, meaning in _MEANINGS.items():
    name = pattern.format(K=K)
    rows.append((name, _with_interval(figures, name), meaning))
  return markdown(("figure", "value", "what it is"), rows)


def _with_interval(figures: Mapping[str, float], name: str) -> str:
  """Returns a figure as `value [low, high]`, or says that it was not measured."""
  value, low, high = (figures[name + end] for end in ("", "_low", "_high"))
  return "not measured" if math.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _domain(domain: str, reference: float | None) -> str:
  """Says which domain the problems are taken for, and which figure tells its regimes apart."""
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


def _commands(
  config: ConfigDict,
  diagnosis: Mapping,
  predictions: Sequence[Prediction],
  config_file: str,
  names_held_out: bool,
) -> str:
  """Returns a command for each piece of advice, each below a comment that says what it is for."""
  all_advice: dict[str, Advice] = {}
  for predicted in predictions:
    for key in predicted.advice:
      all_advice[key] = prediction.ADVICE[key]
  lines = ""
  for key, advice in all_advice.items():
    options = advice.options
    if advice.stage == "rl" and not names_held_out:
      is_whole_source = diagnosis["figures"]["problems"] < config.diagnose.problems
      options += _held_out_options(config, advice, is_whole_source)
    file = shlex.quote(f"--config={config_file}")
    lines += f"# {advice.what}\njaxrlvr {advice.stage} {file} --workdir=runs/{key.replace(' ', '-')}{options}\n"
  return lines


def _held_out_options(config: ConfigDict, advice: Advice, is_whole_source: bool) -> str:
  """Returns options that name the held-out problems of a command that trains with RL, as problems.source names none.

  They are the problems of problems.source that are not trained on, or HELDOUT, a file of the user's, where RL trains on
  all of it or on another source. is_whole_source: whether the source has no other problems than those diagnosed.
  """
  trains_on_part = config.problems.count > 0 or "--config.problems.count=" in advice.options
  if not trains_on_part or "--config.problems.source=" in advice.options:
    return " --config.heldout.source=HELDOUT"
  options = [f"--config.heldout.source={config.problems.source}", "--config.heldout.overlap=drop"]
  if is_whole_source:
    options.append("--config.heldout.count=0")
  for key in _KEYS_OF_ROWS:
    value = config.problems[key]
    if value != config.heldout[key]:
      options.append(f"--config.heldout.{key}={value}")
  return "".join(f" {shlex.quote(option)}" for option in options)
