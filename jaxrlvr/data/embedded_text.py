"""The embedded training text: documents by number, each a pure function of (seed, number)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxrlvr.base.types import Problem
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.text.tokenizer import Tokenizer, continuation
from jaxrlvr.training.packing import Document


class Mix(NamedTuple):
  """Shares of the kinds of text (configs/base.py, `text` and `sft`)."""

  levels: tuple[int, ...]
  filler: float = 0.0
  facts: float = 0.0
  careful: float = 1.0
  guess_right: float = 0.25
  thinking: bool = True
  terse: float = 0.0
  kinds: tuple[str, ...] = ("chain",)  # of problems, in turn


class Text(NamedTuple):
  """A document before it is tokenised: plain text (problem None), or a problem and its response."""

  text: str
  problem: Problem | None = None
  masked: bool = False  # the prompt is context only


def _problem(seed: int, stream: str, draw, number: int, mix: Mix) -> Problem:
  kind = mix.kinds[number % len(mix.kinds)]
  return arithmetic.problem(seed, "train", draw.choice(mix.levels), number, kind, stream)


def pretrain(seed: int, number: int, mix: Mix) -> Text:
  """Filler, easy facts, or a problem answered carefully or hastily."""
  draw = arithmetic.rng(seed, "pretrain", number)
  kind = draw.random()
  if kind < mix.filler:
    return Text(arithmetic.filler(draw))
  if kind < mix.filler + mix.facts:
    return Text(arithmetic.facts(draw))
  problem = _problem(seed, "pretrain", draw, number, mix)
  tree = problem.extra["tree"]
  careful = draw.random() < mix.careful
  return Text(arithmetic.careful(tree) if careful else arithmetic.hasty(tree, draw, mix.guess_right), problem)


def cpt(seed: int, number: int, mix: Mix) -> Text:
  """A worked example with every step, in one of several wordings; one of them is that of the answers."""
  draw = arithmetic.rng(seed, "cpt", number)
  problem = _problem(seed, "cpt", draw, number, mix)
  wording, tree = draw.choice(arithmetic.WORDINGS), problem.extra["tree"]
  if wording is arithmetic.careful:
    return Text(wording(tree), problem)
  return Text(problem.messages[0]["content"] + "\n" + wording(tree))


def sft(seed: int, number: int, mix: Mix) -> Text:
  """A prompt and its right answer: behind a right trace (complete, or terse) if `thinking`, else alone."""
  draw = arithmetic.rng(seed, "sft", number)
  problem = _problem(seed, "sft", draw, number, mix)
  tree = problem.extra["tree"]
  if not mix.thinking:
    return Text(arithmetic.direct(tree), problem, True)
  return Text(arithmetic.terse(tree) if draw.random() < mix.terse else arithmetic.careful(tree), problem, True)


# Documents of each language-modelling stage. Keys: names of stages.
TEXTS: Mapping[str, Callable[[int, int, Mix], Text]] = {"pretrain": pretrain, "cpt": cpt, "sft": sft}


def document_text(made: Text) -> str:
  """The characters of a document, for training a tokenizer."""
  return made.text if made.problem is None else made.problem.messages[-1]["content"] + "\n" + made.text


def document(made: Text, tokenizer: Tokenizer) -> Document:
  """Token ids with end token; none at all for a text that was left out ("" and no problem).

  Behind a prompt that ends in an open think tag only what is missing of the response is written.
  """
  if not made.text and made.problem is None:
    return Document([], 0)
  messages = made.problem.messages if made.problem else ()
  prompt, text = tokenizer.render(messages), continuation(made.text, tokenizer.opening(messages))
  ids = [*prompt, *tokenizer.encode(text), tokenizer.eos_ids[0]]
  return Document(ids, len(prompt) if made.masked else 0)
