"""Rewards as values in one table, and sums and products of them: what RL is told about the answers of a batch."""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.grading.service import Job
from jaxrlvr.grading.vote import Election, Grade, elect
from jaxrlvr.tasks.verdicts import UNPARSEABLE
from jaxrlvr.text.answer import FORMATS, Parsed, stated


class Answers(NamedTuple):
  """The responses of a batch, problem-major, with what the device measured of them."""

  problems: Sequence[Problem]  # P
  response_PG: Sequence[Sequence[Parsed]]
  statistics: Mapping[str, np.ndarray]  # [P,G] each: mean `certainty` and `entropy` a token, `sequence_logp`; nats
  sample_PG: np.ndarray  # index among the samples of its problem at this step
  seed: int = 0
  step: int = 0


class Graded(NamedTuple):
  """Outcome of each answer; where scored is False nobody could say, and the value means nothing."""

  value_PG: np.ndarray  # float32
  scored_PG: np.ndarray  # bool
  cause_PG: list[list[str]]  # why an answer is unscored; may tell more of a scored one (`types.Verdict`)
  elections_P: list[Election] | None = None  # where the label was voted on; of several votes in a sum the first


def remembering(grade: Grade) -> Grade:
  """`grade` that grades a response against an answer once, however many rewards ask: all see one verdict."""
  known: dict[tuple, Verdict] = {}

  def once(jobs: Sequence[Job]) -> list[Verdict]:
    addresses = [(job.verifier, job.response, job.label, id(job.extra)) for job in jobs]
    new = {address: job for address, job in zip(addresses, jobs, strict=True) if address not in known}
    known.update(zip(new, grade(list(new.values())), strict=True))
    kept_alive.extend(new.values())
    return [known[address] for address in addresses]

  kept_alive: list[Job] = []  # or the id of an `extra` could come to mean another
  return once


def grade_against(answers: Answers, wanted: Sequence[str], grade: Grade) -> Graded:
  """Every response graded by its problem's verifier against `wanted`, one answer a problem."""
  jobs = [
    Job(problem.verifier, response, answer, problem.extra)
    for problem, answer, responses in zip(answers.problems, wanted, answers.response_PG, strict=True)
    for response in responses
  ]
  verdicts = grade(jobs)
  shape = (len(answers.problems), -1)
  cause = np.array([v.cause for v in verdicts], object).reshape(shape).tolist()
  value = np.array([v.score if v.score is not None else np.nan for v in verdicts], np.float32).reshape(shape)
  return Graded(np.nan_to_num(value, posinf=0.0, neginf=0.0), np.isfinite(value), cause)


def truth(answers: Answers, grade: Grade) -> Graded:
  """Graded against the true answers: what evaluation uses, and what every run logs beside its reward."""
  return grade_against(answers, [p.truth for p in answers.problems], grade)


def labels_right(problems: Sequence[Problem], grade: Grade) -> dict[str, float | None]:
  """By problem id whether its label is a right answer, by its verifier: 1.0, 0.0, or None where that can't say."""
  jobs = [Job(p.verifier, stated(p.label), p.truth, p.extra) for p in problems]
  return {p.id: verdict.score for p, verdict in zip(problems, grade(jobs), strict=True)}


def uniform(answers: Answers, stream: str) -> np.ndarray:
  """[P,G] draws from [0, 1), each a function of (seed, stream, step, problem, sample) alone."""

  def draw(problem: Problem, sample: int) -> float:
    address = f"{answers.seed}/{stream}/{answers.step}/{sample}/{problem.id}".encode()
    return int.from_bytes(hashlib.blake2b(address, digest_size=6).digest(), "little") / 2**48

  pairs = zip(answers.problems, answers.sample_PG, strict=True)
  return np.array([[draw(problem, sample) for sample in samples] for problem, samples in pairs])


def _sure(value_PG) -> Graded:
  """Values that need no verifier."""
  value_PG = np.asarray(value_PG, np.float32)
  return Graded(value_PG, np.isfinite(value_PG), [["" if np.isfinite(x) else "error" for x in row] for row in value_PG])


def _format(answers: Answers, grade: Grade, *, name: str) -> Graded:
  return _sure([[FORMATS[name](response) for response in responses] for responses in answers.response_PG])


def _verifiable(answers: Answers, grade: Grade) -> Graded:
  return grade_against(answers, [p.label for p in answers.problems], grade)


def _inverse(answers: Answers, grade: Grade) -> Graded:
  """1 for an answer that is not the label's; 0 for a response that holds none the verifier can read."""
  graded = _verifiable(answers, grade)
  read_PG = np.array(graded.cause_PG, object) != UNPARSEABLE.cause
  value_PG = np.where(read_PG & graded.scored_PG, 1.0 - graded.value_PG, 0.0)
  return graded._replace(value_PG=value_PG.astype(np.float32))


def _statistic(answers: Answers, grade: Grade, *, name: str, sign: float) -> Graded:
  return _sure(sign * answers.statistics[name])


def _random(answers: Answers, grade: Grade, rate: float = 0.5) -> Graded:
  return _sure(uniform(answers, "random reward") < rate)


def _agreement(answers: Answers, voters_PG, grade: Grade) -> Graded:
  """1 where a response gives the most frequent answer of those that vote; without any vote nobody is paid."""
  answers_PG = [
    [response.answer if votes else None for response, votes in zip(*row, strict=True)]
    for row in zip(answers.response_PG, voters_PG, strict=True)
  ]
  elections = elect(answers.problems, answers_PG, grade)
  won_P = [None if e.winner is None else e.cluster_G[e.winner] for e in elections]
  value = [[c is not None and c == won for c in e.cluster_G] for e, won in zip(elections, won_P, strict=True)]
  cause = [e.cause_G for e in elections]
  scored = np.array([[not c for c in row] for row in cause])
  return Graded(np.array(value, np.float32), scored, cause, elections)


def _majority(answers: Answers, grade: Grade, *, voter: Callable[[Parsed], bool] = lambda response: True) -> Graded:
  voters_PG = [[voter(response) for response in responses] for responses in answers.response_PG]
  return _agreement(answers, voters_PG, grade)


def _wrong_label(answers: Answers, grade: Grade) -> Graded:
  """1 for the most frequent wrong answer; unscored where nobody could say whether an answer is wrong."""
  true = truth(answers, grade)
  voted = _agreement(answers, true.scored_PG & (true.value_PG < 1), grade)
  cause_PG = np.array(voted.cause_PG, object)
  unknown_PG = ~true.scored_PG
  cause_PG[unknown_PG] = np.array(true.cause_PG, object)[unknown_PG]
  return Graded(voted.value_PG, voted.scored_PG & true.scored_PG, cause_PG.tolist())


class Reward(NamedTuple):
  """What one name in `rl.reward` stands for."""

  function: Callable[..., Graded]  # (answers, grade, *the arguments written behind the name)
  binary: bool = True  # worth 0 or 1
  votes: bool = False  # looks at all `rl.votes` samples, those that are not trained on too


# Keys: names in `rl.reward`.
REWARDS: dict[str, Reward] = {
  "verifiable": Reward(_verifiable),  # the answer is the label's, which may be wrong
  "inverse": Reward(_inverse),  # there is an answer, and it is not the label's
  "wrong_label": Reward(_wrong_label, votes=True),  # it is the group's most frequent wrong answer
  "majority_vote": Reward(_majority, votes=True),  # it is the group's most frequent answer (TTRL)
  "majority_vote_thinking": Reward(  # the same, and only responses of the thinking format vote and are paid
    functools.partial(_majority, voter=FORMATS["thinking_format"]), votes=True
  ),
  "self_certainty": Reward(functools.partial(_statistic, name="certainty", sign=1.0), binary=False),  # Intuitor
  "token_entropy": Reward(functools.partial(_statistic, name="entropy", sign=-1.0), binary=False),  # - mean H(p)
  "sequence_entropy": Reward(  # log p(response): minus the entropy over whole responses, from one sample
    functools.partial(_statistic, name="sequence_logp", sign=1.0), binary=False
  ),
  "random": Reward(_random),  # random(0.3): 1 with this probability, else with 0.5
  **{name: Reward(functools.partial(_format, name=name)) for name in FORMATS},
}


class Part(NamedTuple):
  """One reward of an expression, with the arguments written behind it: `random(0.3)`."""

  name: str
  arguments: tuple[float, ...] = ()

  def __str__(self) -> str:
    return self.name + (f"({', '.join(map(str, self.arguments))})" if self.arguments else "")


Terms = list[tuple[float, tuple[Part, ...]]]  # a sum of weighted products


def parse(text: str) -> Terms:
  """`0.7*verifiable*thinking_format + 0.3*one_box` as a sum of products; InputError for anything else."""
  try:
    tree = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError) as error:
    raise InputError(f"reward {text!r}: can't be read ({error}); write names, numbers, +, - and *") from None
  terms = _terms(tree, text)
  if not all(parts for _, parts in terms):
    raise InputError(f"reward {text!r}: a number alone pays everybody the same; drop it")
  return terms


def _terms(node: ast.expr, text: str) -> Terms:
  match node:
    case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
      sign = 1.0 if isinstance(node.op, ast.Add) else -1.0
      return _terms(left, text) + [(sign * weight, parts) for weight, parts in _terms(right, text)]
    case ast.BinOp(left=left, op=ast.Mult(), right=right):
      return [(v * w, a + b) for v, a in _terms(left, text) for w, b in _terms(right, text)]
    case ast.UnaryOp(op=ast.USub(), operand=operand):
      return [(-weight, parts) for weight, parts in _terms(operand, text)]
    case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and np.isfinite(value):
      return [(float(value), ())]
    case ast.Name(id=name):
      return [(1.0, (_part(name, (), text),))]
    case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
      values = [term for arg in args for term in _terms(arg, text)]
      if not any(parts for _, parts in values):
        return [(1.0, (_part(name, tuple(weight for weight, _ in values), text),))]
  raise InputError(f"reward {text!r}: {ast.unparse(node)!r} is not understood; write names, numbers, +, - and *")


def _part(name: str, arguments: tuple[float, ...], text: str) -> Part:
  if name not in REWARDS:
    near = difflib.get_close_matches(name, REWARDS, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(REWARDS)}"
    raise InputError(f"reward {text!r}: there is no {name!r}; {hint}")
  if arguments and (name != "random" or len(arguments) > 1 or not 0 <= arguments[0] <= 1):
    raise InputError(f"reward {text!r}: {name}{arguments} is not understood; only random(RATE), RATE in [0, 1], is")
  return Part(name, arguments)


def is_binary(terms: Terms) -> bool:
  """Is every value 0 or 1, so that it can be called right or wrong?"""
  return len(terms) == 1 and terms[0][0] == 1.0 and all(REWARDS[part.name].binary for part in terms[0][1])


def votes(terms: Terms) -> bool:
  """Does a part look at more samples than are trained on?"""
  return any(REWARDS[part.name].votes for _, parts in terms for part in parts)


def evaluate(terms: Terms, answers: Answers, grade: Grade) -> tuple[Graded, dict[str, Graded]]:
  """(the reward, its parts by name). An answer that one part can't score is unscored."""
  parts = {part: None for _, factors in terms for part in factors}
  graded = {part: REWARDS[part.name].function(answers, grade, *part.arguments) for part in parts}
  value = sum(weight * np.prod([graded[part].value_PG for part in factors], 0) for weight, factors in terms)
  scored = np.logical_and.reduce([g.scored_PG for g in graded.values()])
  causes = [np.array(g.cause_PG, object) for g in graded.values()]
  cause = functools.reduce(lambda a, b: np.where(a == "", b, a), causes)
  elections = next((g.elections_P for g in graded.values() if g.elections_P), None)
  whole = Graded(np.where(scored, value, 0.0).astype(np.float32), scored, cause.tolist(), elections)
  return whole, {str(part): g for part, g in graded.items()}


def noisy(graded: Graded, answers: Answers, false_positive: float, false_negative: float) -> Graded:
  """A binary reward seen through a channel that pays a 0 and withholds a 1 at these rates."""
  u_PG, paid = uniform(answers, "noise"), graded.value_PG == 1
  value = np.where(paid, u_PG >= false_negative, u_PG < false_positive)
  return graded._replace(value_PG=value.astype(np.float32))
