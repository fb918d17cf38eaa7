"""The sampling loop: a prompt is prefilled once, its G continuations share it, finished rows leave the batch."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrlvr import shard
from jaxrlvr.policy import forward as fwd
from jaxrlvr.policy.attention import NEGATIVE
from jaxrlvr.policy.spec import Spec, shardings
from jaxrlvr.types import InputError

STOP_LENGTH, STOP_EOS, STOP_STRING = 0, 1, 2
STOP_NAMES = ("length", "eos", "string")


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to sample; hashable, a static argument of jit."""

  group: int  # samples a problem
  max_tokens: int  # response tokens at most
  eos_ids: tuple[int, ...]
  pad_id: int = 0  # what stands behind a response; never read as a token
  temperature: float = 1.0  # 0: greedy
  top_k: int = 0  # keep the k likeliest tokens (ties too), 0: all
  top_p: float = 1.0  # then the smallest set with at least this probability, 1: all
  shrink: int = 2  # how many times the batch is halved as rows finish, 0: never

  def __post_init__(self):
    if self.group < 1 or self.max_tokens < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
      raise InputError(f"{self}: group and max_tokens from 1, temperature and top_k from 0, top_p in (0, 1]")


@struct.dataclass
class Rollout:
  """B = P * G responses, problem-major. Slots from length_B on hold pad_id and zeros."""

  tokens_BT: jax.Array
  length_B: jax.Array  # tokens of the response, the stopping one included
  stop_B: jax.Array  # STOP_LENGTH, STOP_EOS or STOP_STRING
  logp_BT: jax.Array  # under the distribution really sampled from (temperature, top-k, top-p)
  model_logp_BT: jax.Array  # under the model itself (temperature 1)
  certainty_BT: jax.Array  # KL(U || p) of the model itself, nats
  entropy_BT: jax.Array  # H(p) of the model itself, nats


@struct.dataclass
class _State:
  """What a decode step carries; every array is led by the live rows R."""

  rollout: Rollout
  last_R: jax.Array
  done_R: jax.Array
  matched_R: jax.Array  # state of the stop-string automaton
  key_R: jax.Array
  row_R: jax.Array  # index of the row inside its shard's part of the batch
  prompt_R: jax.Array  # prompt length


def _truncate(logits_RV, s: Sampling):
  """Tempered logits with the tokens outside of top-k and top-p at NEGATIVE."""
  logits_RV = logits_RV / s.temperature
  if s.top_k or s.top_p < 1:
    ordered = -jnp.sort(-logits_RV, -1)
    if s.top_k:
      floor = ordered[:, min(s.top_k, ordered.shape[1]) - 1, None]
      logits_RV, ordered = (jnp.where(x >= floor, x, NEGATIVE) for x in (logits_RV, ordered))
    if s.top_p < 1:
      p = jax.nn.softmax(ordered, -1)
      kept = jnp.cumsum(p, -1) - p < s.top_p
      floor = jnp.min(jnp.where(kept, ordered, jnp.inf), -1, keepdims=True)
      logits_RV = jnp.where(logits_RV >= floor, logits_RV, NEGATIVE)
  return logits_RV


def draw(logits_RV, key_R, t, s: Sampling):
  """(token, its logp under what was sampled from): inverse-CDF, one uniform a (row key, position t)."""
  if s.temperature == 0:
    return jnp.argmax(logits_RV, -1).astype(jnp.int32), jnp.zeros(len(logits_RV))
  logits_RV = _truncate(logits_RV, s)
  u_R = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t)))(key_R)
  p_RV = jnp.exp(logits_RV - jnp.max(logits_RV, -1, keepdims=True))
  cdf_RV = jnp.cumsum(p_RV, -1)
  total_R = cdf_RV[:, -1:]
  token_R = jnp.sum(cdf_RV <= u_R[:, None] * total_R, -1)
  token_R = jnp.minimum(token_R, jnp.argmax(cdf_RV >= total_R, -1))  # u * total may round up to total
  chosen = jnp.take_along_axis(logits_RV, token_R[:, None], -1)[:, 0]
  return token_R.astype(jnp.int32), chosen - jax.nn.logsumexp(logits_RV, -1)


def _emit(state: _State, logits_RV, t, s: Sampling, stops, known: int) -> _State:
  """Draws token t of each live row and records it; each device looks at some rows over the whole vocabulary."""
  if not len(logits_RV) % shard.here("everywhere"):
    logits_RV = shard.constrain(logits_RV, "everywhere", None)
  real = jnp.arange(logits_RV.shape[1]) < known
  logits_RV = jnp.where(real, logits_RV, NEGATIVE)
  token_R, logp_R = draw(logits_RV, state.key_R, t, s)
  shifted_RV = logits_RV - jnp.max(logits_RV, -1, keepdims=True)
  e_RV = jnp.exp(shifted_RV)
  total_R = jnp.sum(e_RV, -1)
  entropy_R = jnp.log(total_R) - jnp.sum(e_RV * shifted_RV, -1) / total_R
  log_z = jnp.max(logits_RV, -1) + jnp.log(total_R)
  model_logp_R = jnp.take_along_axis(logits_RV, token_R[:, None], -1)[:, 0] - log_z
  certainty_R = log_z - jnp.sum(jnp.where(real, logits_RV, 0.0), -1) / known - jnp.log(float(known))
  live_R = ~state.done_R
  matched_R = stops[state.matched_R, token_R]
  eos_R = jnp.isin(token_R, jnp.array(s.eos_ids, jnp.int32))
  string_R = matched_R == len(stops) - 1
  r = state.rollout

  def put(array_RT, value_R):
    column = jnp.where(live_R, value_R, array_RT[:, t])[:, None].astype(array_RT.dtype)
    return jax.lax.dynamic_update_slice(array_RT, column, (0, t))

  stop_R = jnp.where(eos_R, STOP_EOS, jnp.where(string_R, STOP_STRING, STOP_LENGTH))
  rollout = Rollout(
    tokens_BT=put(r.tokens_BT, token_R),
    length_B=r.length_B + live_R,
    stop_B=jnp.where(live_R, stop_R, r.stop_B),
    logp_BT=put(r.logp_BT, logp_R),
    model_logp_BT=put(r.model_logp_BT, model_logp_R),
    certainty_BT=put(r.certainty_BT, certainty_R),
    entropy_BT=put(r.entropy_BT, entropy_R),
  )
  return state.replace(rollout=rollout, last_R=token_R, done_R=state.done_R | eos_R | string_R, matched_R=matched_R)


def _decode_attend(own_mask_T, prompt_mask_PS, t, shared):
  """Attention of one new token over its problem's prompt (shared by the group) and its own response so far."""

  def attend(q_RHth, k_RKth, v_RKth, cache):
    (prompt_k, prompt_v), (own_k, own_v) = shared[cache[0]], cache[1:]
    rows, heads, _, head_dim = q_RHth.shape
    problems, kv_heads = prompt_k.shape[:2]
    own_k = jax.lax.dynamic_update_slice(own_k, k_RKth.swapaxes(2, 3), (0, 0, 0, t))
    own_v = jax.lax.dynamic_update_slice(own_v, v_RKth, (0, 0, t, 0))
    q = q_RHth.reshape(rows, kv_heads, heads // kv_heads, head_dim)
    own = jnp.einsum("rkgh,rkht->rkgt", q, own_k, preferred_element_type=jnp.float32)
    # rows of a problem become query rows of one product a problem: [P, K, G*g, h] x [P, K, h, S]
    group = rows // problems
    q_P = q.reshape(problems, group, kv_heads, -1, head_dim).swapaxes(1, 2).reshape(problems, kv_heads, -1, head_dim)
    past = jnp.einsum("pkqh,pkhs->pkqs", q_P, prompt_k, preferred_element_type=jnp.float32)
    past = jnp.where(prompt_mask_PS[:, None, None], past * head_dim**-0.5, NEGATIVE)
    own = jnp.where(own_mask_T, own * head_dim**-0.5, NEGATIVE)

    def ungroup(x):  # [P, K, G*g, ...] -> [R, K, g, ...]
      x = x.reshape(problems, kv_heads, group, -1, *x.shape[3:]).swapaxes(1, 2)
      return x.reshape(rows, kv_heads, -1, *x.shape[4:])

    def regroup(x):  # [R, K, g, S] -> [P, K, G*g, S]
      x = x.reshape(problems, group, kv_heads, -1, x.shape[-1]).swapaxes(1, 2)
      return x.reshape(problems, kv_heads, -1, x.shape[-1])

    weight = jax.nn.softmax(jnp.concatenate([ungroup(past), own], -1), -1).astype(own_v.dtype)
    past, own = weight[..., : prompt_k.shape[-1]], weight[..., prompt_k.shape[-1] :]
    out = ungroup(jnp.einsum("pkqs,pksh->pkqh", regroup(past), prompt_v))
    out = out + jnp.einsum("rkgt,rkth->rkgh", own, own_v)
    return out.reshape(q_RHth.shape), (cache[0], own_k, own_v)

  return attend


def _local(fn, shards: int, *arrays):
  """fn of the rows of each shard of the batch apart, so that no row leaves its device."""
  out = jax.vmap(fn)(*(x.reshape(shards, -1, *x.shape[1:]) for x in arrays))
  return shard.constrain(out.reshape(-1, *out.shape[2:]), "batch", *[shard.ANY] * (out.ndim - 2))


def _each(fn, shards: int, tree, index):
  """`_local` of (leaf, index) for each leaf of a tree."""
  return jax.tree.map(lambda x: _local(fn, shards, x, index), tree)


class _Prompt(NamedTuple):
  """The shared part of attention: one entry a problem, or a row once the batch has shrunk."""

  layers: list[tuple[jax.Array, jax.Array]]  # K [P,K,h,S] and V [P,K,S,h]: the layouts that decode reads fastest
  mask_PS: jax.Array


def _read(weights, prompt_PS, prompt_length_P, spec: Spec) -> tuple[jax.Array, _Prompt]:
  """(final hidden state of the last prompt token [P,D], what later tokens attend to)."""
  slots = jnp.arange(prompt_PS.shape[1])
  pad_P1 = prompt_PS.shape[1] - prompt_length_P[:, None]
  mask_PS = slots >= pad_P1
  attend = fwd.causal(mask_PS.astype(jnp.int32), spec)
  positions_PS = jnp.maximum(slots - pad_P1, 0)
  hidden, (k, v) = fwd.forward(weights, prompt_PS, positions_PS, attend, None, spec, keep_cache=True)
  return hidden[:, -1], _Prompt([(k[i].swapaxes(2, 3), v[i]) for i in range(spec.layers)], mask_PS)


def _fresh(keys_B, prompt_length_P, s: Sampling, shards: int) -> _State:
  rows = len(keys_B)
  zeros_RT = jnp.zeros((rows, s.max_tokens), jnp.float32)
  zero_R = jnp.zeros(rows, jnp.int32)
  return _State(
    rollout=Rollout(jnp.full((rows, s.max_tokens), s.pad_id, jnp.int32), zero_R, zero_R, *[zeros_RT] * 4),
    last_R=zero_R,
    done_R=jnp.zeros(rows, bool),
    matched_R=zero_R,
    key_R=keys_B,
    row_R=jnp.arange(rows) % (rows // shards),
    prompt_R=jnp.repeat(prompt_length_P, s.group),
  )


def _steps(weights, prompt: _Prompt, carry, enough: int, stops, spec: Spec, s: Sampling, shards: int):
  """Decodes token after token until at most `enough` rows a shard are alive, or the length limit is reached."""

  def go_on(carry):
    t, state, _ = carry
    alive = jnp.max(jnp.sum(~state.done_R.reshape(shards, -1), 1))
    return (t + 1 < s.max_tokens) & (alive > enough)

  def step(carry):
    t, state, cache = carry
    attend = _decode_attend(jnp.arange(s.max_tokens) <= t, prompt.mask_PS, t, prompt.layers)
    layered = tuple((i, *entry) for i, entry in enumerate(cache))
    positions_R1 = (state.prompt_R + t)[:, None]
    hidden, layered = fwd.forward(weights, state.last_R[:, None], positions_R1, attend, layered, spec)
    state = _emit(state, _logits(weights, hidden[:, 0], spec), t + 1, s, stops, spec.known_vocab)
    return t + 1, state, tuple(entry[1:] for entry in layered)

  return jax.lax.while_loop(go_on, step, carry)


def _halve(prompt: _Prompt, state: _State, cache, fan: int, shards: int):
  """(prompt, state, cache) of the half of the rows that holds all live ones, and what the other half has made.

  From here on each row holds its own copy of its prompt's keys and values: half of what no sharing would take.
  `fan` is how many rows share a prompt now.
  """
  half = len(state.done_R) // shards // 2
  order = _local(lambda done_R: jnp.argsort(done_R, stable=True), shards, state.done_R)
  finished = _each(lambda x, i: x[i[half:]], shards, (state.rollout, state.row_R), order)
  state, cache = _each(lambda x, i: x[i[:half]], shards, (state, cache), order)
  return _each(lambda x, i: x[i[:half] // fan], shards, prompt, order), state, cache, finished


def _logits(weights, hidden_RD, spec: Spec) -> jax.Array:
  """Made where each device's part of the head lies: else the head would be gathered for every token."""
  logits_RV = jnp.einsum("rd,vd->rv", hidden_RD, fwd.head_VD(weights, spec), preferred_element_type=jnp.float32)
  return shard.constrain(logits_RV, "batch", "vocab")


@functools.lru_cache
def lay_out(spec: Spec, mesh: jax.sharding.Mesh):
  """The program that makes sampling's weights of the masters: cast, and laid out on sampling's mesh."""
  return jax.jit(lambda params: fwd.cast(params, spec), out_shardings=shardings(spec, mesh))


@functools.partial(jax.jit, static_argnames=("spec", "s", "shards"))
def prefill(weights, prompt_PS, prompt_length_P, keys_B, stops, spec: Spec, s: Sampling, *, shards: int = 1):
  """(keys and values of the prompts, state after the first token of each response); arguments as of `sample`."""
  weights = fwd.cast(weights, spec)
  hidden_PD, prompt = _read(weights, prompt_PS, prompt_length_P, spec)
  state = _fresh(keys_B, prompt_length_P, s, shards)
  first_RV = jnp.repeat(_logits(weights, hidden_PD, spec), s.group, 0)
  return prompt, _emit(state, first_RV, 0, s, stops, spec.known_vocab)


@functools.partial(jax.jit, static_argnames=("spec", "s", "shards"))
def decode(weights, prompt: _Prompt, state: _State, stops, spec: Spec, s: Sampling, *, shards: int = 1) -> Rollout:
  """All further tokens of the responses that `prefill` began."""
  weights = fwd.cast(weights, spec)
  rows, kv_heads = len(state.done_R), prompt.layers[0][0].shape[1]
  own = (rows, kv_heads, spec.head_dim, s.max_tokens), (rows, kv_heads, s.max_tokens, spec.head_dim)
  axes = ("batch", "kv_heads", None, None)
  cache = tuple(
    tuple(shard.constrain(jnp.zeros(shape, spec.dtype), *axes) for shape in own) for _ in range(spec.layers)
  )
  t, finished, fan = jnp.int32(0), [], s.group
  for level in range(s.shrink + 1):
    here = len(state.done_R) // shards
    last = level == s.shrink or here % 2 or here < 4
    t, state, cache = _steps(weights, prompt, (t, state, cache), 0 if last else here // 2, stops, spec, s, shards)
    if last:
      break
    prompt, state, cache, made = _halve(prompt, state, cache, fan, shards)
    finished, fan = [*finished, made], 1
  parts = [*finished, (state.rollout, state.row_R)]
  rollout, row_B = jax.tree.map(lambda *x: _local(lambda *y: jnp.concatenate(y), shards, *x), *parts)
  return _each(lambda x, i: x[jnp.argsort(i)], shards, rollout, row_B)


def sample(weights, prompt_PS, prompt_length_P, keys_B, stops, spec: Spec, s: Sampling, *, shards: int = 1) -> Rollout:
  """G continuations of each prompt, a pure function of weights, prompt and row key; two programs.

  weights: masters, or already in the compute dtype (`forward.cast`), which saves a copy; prompt_PS: left-padded token
  ids; prompt_length_P: how many of the last slots are real (at least 1); keys_B: one a row (`keys.rows`); stops: the
  stop-string automaton (`text.stops.automaton`), int [states, V], its last state meaning found; shards: pieces that
  the batch is cut into on the mesh, rows are compacted inside each.
  """
  prompt, state = prefill(weights, prompt_PS, prompt_length_P, keys_B, stops, spec, s, shards=shards)
  return decode(weights, prompt, state, stops, spec, s, shards=shards)
