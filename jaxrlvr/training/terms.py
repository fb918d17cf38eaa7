"""Terms that are added to GRPO's loss: a few by name, and functions of a user's own.

A term is a pure function of jax over arrays with an entry for each token of a microbatch, [rows, slots], whose
parameters name them; it returns a value for each token. The loss gets the sum of these values, each with the weight
that the token has in the loss of the step, times the weight of the term.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
# What a term may take, float32 in nats where nothing else is said. Each is 0 at tokens that are not trained on, so that
# differences of log-probabilities are too.
ARRAYS = {
  "logp": "log-probability of the token under the policy, through which the gradient flows",
  "old_logp": "that under the policy which began the step",
  "ref_logp": "that under the reference model, the starting policy",
  "sampler_logp": "that with which the token was sampled",
  "entropy": "entropy of the policy where the token was drawn, through which the gradient flows",
  "certainty": "self-certainty there, through which the gradient flows",
  "advantages": "advantage of the token's response",
  "weights": "weight of the token in the loss of the step",
  "mask": "True at tokens that are trained on",
}


def _entropy(entropy):
  return entropy


# Terms by name. With a negative weight entropy is a bonus, as of One-shot RLVR (arXiv 2504.20571, 0.001) and EVOL-RL
# (2509.15194, 0.003); with a positive one it is the direct entropy loss of One-shot EM (2505.20282).
TERMS: Mapping[str, Callable] = {"entropy": _entropy}


class Term(NamedTuple):
  """A term of the loss."""

  weight: float  # what the sum of its values is multiplied by
  name: str  # a key of TERMS, or the name of a user's function
  function: Callable
  takes: tuple[str, ...]  # the keys of ARRAYS that it takes

  @property
  def metric(self) -> str:
    """Property: the name of the metric that holds its mean."""
    return f"loss/{self.name.rpartition(':')[2]}"


def parse_terms(texts: Sequence[str]) -> tuple[Term, ...]:
  """Returns the terms that texts such as "-0.001*entropy" or "0.1*my_losses.py:gap" stand for, in their order.

  A text without a number has the weight 1. Raises InputError for any other text, for an unknown name, for two terms of
  one name, and for a function that can't be imported, takes something else than ARRAYS, can't be differentiated by jax,
  or does not return an array of the shape of theirs.
  """
  terms: dict[str, Term] = {}
  for text in texts:
    if not isinstance(text, str):
      raise InputError(f'loss_terms: {text!r} is no text; write "-0.001*entropy"')
    term = _term(text)
    if term.metric in terms:
      raise InputError(f"loss_terms: {text!r}: there are two terms of this name; add them up in one function")
    terms[term.metric] = term
  return tuple(terms.values())


def own_functions(texts: Sequence[str]) -> list[str]:
  """Returns the names of a user's functions among terms, in their order."""
  return [term.name for term in parse_terms(texts) if named.is_name(term.name)]


def _term(text: str) -> Term:
  """Returns the checked term that a text stands for."""
  before, star, name = text.partition("*")
  weight = 1.0
  if star and _NUMBER.fullmatch(before.strip()):
    weight = float(before)
  else:
    name = text
  name = name.strip()
  if name in TERMS:
    function = TERMS[name]
  elif named.is_name(name):
    function = named.load(name)
  else:
    similar = difflib.get_close_matches(name, TERMS, 1)
    hint = f"did you mean {similar[0]!r}?" if similar else f"use {', '.join(TERMS)}, or path.py:NAME"
    raise InputError(f"loss_terms: {text!r}: there is no term {name!r}; {hint}")
  term = Term(weight, name, function, _parameters(name, function))
  _check_result(term)
  return term


def _parameters(name: str, function: Any) -> tuple[str, ...]:
  """Returns which of ARRAYS a function takes. Raises InputError where it needs something else, or none of them."""
  if not callable(function):
    raise InputError(f"loss_terms: {name}: is {type(function).__name__}, no function; name a function")
  try:
    parameters = inspect.signature(function).parameters.values()
  except (TypeError, ValueError):
    raise InputError(f"loss_terms: {name}: its parameters can't be read; wrap it in a function of your own") from None
  by_name = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
  taken = tuple(one.name for one in by_name if one.name in ARRAYS)
  unfilled = [one.name for one in by_name if one.name not in taken and one.default is one.empty]
  if unfilled or not taken:
    raise InputError(
      f"loss_terms: {name}: has the parameters ({', '.join(one.name for one in by_name)}); name them among "
      f"{', '.join(ARRAYS)}"
    )
  return taken


def _check_result(term: Term) -> None:
  """Calls a term with shapes in the place of arrays. Raises InputError where that, or its gradient, fails."""
  shape = (2, 3)
  number = jax.ShapeDtypeStruct(shape, jnp.float32)

  def total(logp: jax.Array, entropy: jax.Array, certainty: jax.Array) -> tuple[jax.Array, jax.Array]:
    arrays = dict.fromkeys(ARRAYS, jnp.zeros(shape))
    arrays |= {"logp": logp, "entropy": entropy, "certainty": certainty, "mask": jnp.ones(shape, bool)}
    value = jnp.asarray(term.function(**_taken(term, arrays)), jnp.float32)
    return jnp.sum(value), value

  try:
    _, value = jax.eval_shape(jax.grad(total, argnums=(0, 1, 2), has_aux=True), number, number, number)
  except Exception as error:  # the user's code may raise anything
    raise InputError(
      f"loss_terms: {term.name}: can't be computed and differentiated by jax: {named.error_line(error)}; write it with "
      "jax.numpy, without branches on values"
    ) from error
  if value.shape != shape:
    raise InputError(
      f"loss_terms: {term.name}: returned {value.shape} for arrays {shape}; return a value for each token, an array of "
      "the shape that it got"
    )


def _taken(term: Term, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Returns the arrays that a term takes, by name."""
  return {name: arrays[name] for name in term.takes}


def term_values(terms: Sequence[Term], arrays: Mapping[str, jax.Array]) -> list[jax.Array]:
  """Returns the value of each term at each token, float32 [B,T]; 0 where mask is False.

  arrays: those of ARRAYS that the terms take, by name. Outside of `mask` their entries are replaced by 0 first, so that
  neither values nor gradients are NaN there.
  """
  mask_BT = arrays["mask"]
  clean = {name: jnp.where(mask_BT, x_BT, jnp.zeros_like(x_BT)) for name, x_BT in arrays.items()}
  results = []
  for term in terms:
    value_BT = jnp.asarray(term.function(**_taken(term, clean)), jnp.float32)
    results.append(jnp.where(mask_BT, value_BT, 0.0))
  return results
