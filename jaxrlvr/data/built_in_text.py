"""The built-in training text: documents by number, each a pure function of seed and number."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxrlvr.base.types import Problem
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.text.tokenizer import Tokenizer, continuation
from jaxrlvr.training.packing import Document


class Mix(NamedTuple):
  """What the documents of a stage contain. Shares are from 0 to 1."""

  levels: tuple[int, ...]  # difficulties of problems, drawn with equal chances; 1 to 5, level n has n + 1 operations
  filler: float = 0.0  # pretrain: share of documents that are general filler
  facts: float = 0.0  # pretrain: share of documents that are easy facts; all others are problems with a response
  careful: float = 1.0  # pretrain: share of the responses that show every step; all others show one step and guess
  guess_right: float = 0.25  # pretrain: share of the guesses that are right
  thinking: bool = True  # sft: whether a trace precedes the answer
  terse: float = 0.0  # sft: share of the traces that show only the first step before the answer
  kinds: tuple[str, ...] = ("chain",)  # kinds of problems, taken in turn: "chain", "expression", "large"


class Text(NamedTuple):
  """A document before it is tokenised: plain text, or a problem and its response."""

  text: str  # plain text, or the response; "" without a problem: a row of a file that holds no text
  problem: Problem | None = None  # its prompt precedes the response; None: plain text
  prompt_is_context: bool = False  # whether the loss leaves out the tokens of the prompt


def _problem(seed: int, stream: str, draw: random.Random, number: int, mix: Mix) -> Problem:
  """Returns the arithmetic problem of document `number`, whose level is drawn from `draw`. stream: the stage."""
  kind = mix.kinds[number % len(mix.kinds)]
  return arithmetic.problem(seed, "train", draw.choice(mix.levels), number, kind, stream)


def pretrain(seed: int, number: int, mix: Mix) -> Text:
  """Returns document `number`, from 0, of pretraining, with the shares that `mix` gives.

  It is general filler, easy facts, or a problem with a response, whose answer is worked out step by step or guessed.
  """
  draw = arithmetic.rng(seed, "pretrain", number)
  lot = draw.random()
  if lot < mix.filler:
    return Text(arithmetic.filler(draw))
  if lot < mix.filler + mix.facts:
    return Text(arithmetic.facts(draw))
  problem = _problem(seed, "pretrain", draw, number, mix)
  tree = problem.extra["tree"]
  is_careful = draw.random() < mix.careful
  response = arithmetic.careful(tree) if is_careful else arithmetic.hasty(tree, draw, mix.guess_right)
  return Text(response, problem)


def cpt(seed: int, number: int, mix: Mix) -> Text:
  """Returns document `number`, from 0, of CPT: a problem worked out with every step, in one of several wordings.

  In one of the wordings it is a prompt with a response that has a trace; in the others it is plain text. Of `mix` only
  levels and kinds count.
  """
  draw = arithmetic.rng(seed, "cpt", number)
  problem = _problem(seed, "cpt", draw, number, mix)
  wording, tree = draw.choice(arithmetic.WORDINGS), problem.extra["tree"]
  if wording is arithmetic.careful:
    return Text(wording(tree), problem)
  return Text(problem.messages[0]["content"] + "\n" + wording(tree))


def sft(seed: int, number: int, mix: Mix) -> Text:
  """Returns document `number`, from 0, of SFT: a problem whose prompt is only context, and a right response.

  With `mix.thinking` the response has a right trace, complete or terse, before the answer, else the answer alone. Of
  `mix` count levels, kinds, thinking and terse.
  """
  draw = arithmetic.rng(seed, "sft", number)
  problem = _problem(seed, "sft", draw, number, mix)
  tree = problem.extra["tree"]
  if not mix.thinking:
    return Text(arithmetic.direct(tree), problem, prompt_is_context=True)
  is_terse = draw.random() < mix.terse
  response = arithmetic.terse(tree) if is_terse else arithmetic.careful(tree)
  return Text(response, problem, prompt_is_context=True)


# The function (seed, number, mix) that returns a document of a stage, by the stage's name.
TEXTS: Mapping[str, Callable[[int, int, Mix], Text]] = {"pretrain": pretrain, "cpt": cpt, "sft": sft}


def document_text(text: Text) -> str:
  """Returns a document as one string, to train a tokenizer on: plain text, or the last turn of the prompt, a line end
  and the response."""
  if text.problem is None:
    return text.text
  return text.problem.messages[-1]["content"] + "\n" + text.text


def document(text: Text, tokenizer: Tokenizer) -> Document:
  """Returns the tokens of a text as a document with the fields ids and prompt.

  `ids`: first the rendered prompt (a plain text has in its place the start token, if the tokenizer has one), then the
  text, then the end token. A plain text that is empty gives no ids at all. `prompt`: how many of the first ids the loss
  leaves out: those of the prompt if it is only context, else 0. If the rendered prompt ends in an open think tag, the
  response does not repeat it. Nothing is cut.
  """
  if not text.text and text.problem is None:
    return Document([], 0)
  messages = text.problem.messages if text.problem else ()
  prompt = tokenizer.render(messages)
  response = continuation(text.text, tokenizer.opening(messages))
  ids = [*prompt, *tokenizer.encode(response), tokenizer.eos_ids[0]]
  return Document(ids, len(prompt) if text.prompt_is_context else 0)
