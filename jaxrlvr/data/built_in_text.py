"""The built-in training text: documents by number, each a pure function of seed and number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxrlvr.base.types import Problem
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.text.tokenizer import Tokenizer, continuation
from jaxrlvr.training.packing import Document


class Mix(NamedTuple):
  """What the texts contain; the keys `text` and `sft` of the config, where each is explained."""

  levels: tuple[int, ...]
  filler: float = 0.0
  facts: float = 0.0
  careful: float = 1.0
  guess_right: float = 0.25
  thinking: bool = True
  terse: float = 0.0
  kinds: tuple[str, ...] = ("chain",)  # kinds of problems, taken in turn


class Text(NamedTuple):
  """A document before it is tokenised: plain text, or a problem and its response."""

  text: str  # plain text, or the response
  problem: Problem | None = None  # None: plain text
  masked: bool = False  # whether the prompt is only context, not a target


def _problem(seed: int, stream: str, draw, number: int, mix: Mix) -> Problem:
  """Returns the arithmetic problem of document `number`."""
  kind = mix.kinds[number % len(mix.kinds)]
  return arithmetic.problem(seed, "train", draw.choice(mix.levels), number, kind, stream)


def pretrain(seed: int, number: int, mix: Mix) -> Text:
  """Returns document `number` of pretraining: filler, easy facts, or a problem answered carefully or hastily."""
  draw = arithmetic.rng(seed, "pretrain", number)
  kind = draw.random()
  if kind < mix.filler:
    return Text(arithmetic.filler(draw))
  if kind < mix.filler + mix.facts:
    return Text(arithmetic.facts(draw))
  problem = _problem(seed, "pretrain", draw, number, mix)
  tree = problem.extra["tree"]
  is_careful = draw.random() < mix.careful
  response = arithmetic.careful(tree) if is_careful else arithmetic.hasty(tree, draw, mix.guess_right)
  return Text(response, problem)


def cpt(seed: int, number: int, mix: Mix) -> Text:
  """Returns document `number` of CPT: a worked example with every step, in one of several wordings.

  One of the wordings is that of careful answers, which follows a prompt.
  """
  draw = arithmetic.rng(seed, "cpt", number)
  problem = _problem(seed, "cpt", draw, number, mix)
  wording, tree = draw.choice(arithmetic.WORDINGS), problem.extra["tree"]
  if wording is arithmetic.careful:
    return Text(wording(tree), problem)
  return Text(problem.messages[0]["content"] + "\n" + wording(tree))


def sft(seed: int, number: int, mix: Mix) -> Text:
  """Returns document `number` of SFT: a prompt and its right answer.

  If `mix.thinking` the answer follows a right trace, complete or terse.
  """
  draw = arithmetic.rng(seed, "sft", number)
  problem = _problem(seed, "sft", draw, number, mix)
  tree = problem.extra["tree"]
  if not mix.thinking:
    return Text(arithmetic.direct(tree), problem, True)
  is_terse = draw.random() < mix.terse
  return Text(arithmetic.terse(tree) if is_terse else arithmetic.careful(tree), problem, True)


# Documents of each language-modelling stage. Keys: names of stages.
TEXTS: Mapping[str, Callable[[int, int, Mix], Text]] = {"pretrain": pretrain, "cpt": cpt, "sft": sft}


def document_text(text: Text) -> str:
  """Returns the characters of a document, for training a tokenizer."""
  if text.problem is None:
    return text.text
  return text.problem.messages[-1]["content"] + "\n" + text.text


def document(text: Text, tokenizer: Tokenizer) -> Document:
  """Returns a text as token ids, with the end token; no ids for an empty plain text, which stands for a bad row.

  Where the rendered prompt already opens the think tag, the response does not repeat it.
  """
  if not text.text and text.problem is None:
    return Document([], 0)
  messages = text.problem.messages if text.problem else ()
  prompt = tokenizer.render(messages)
  response = continuation(text.text, tokenizer.opening(messages))
  ids = [*prompt, *tokenizer.encode(response), tokenizer.eos_ids[0]]
  return Document(ids, len(prompt) if text.masked else 0)
