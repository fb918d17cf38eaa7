"""Logits of a policy, and the policy of a Hugging Face directory on one device."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxrlvr.device import sharding
from jaxrlvr.model import forward as fwd
from jaxrlvr.model import hf_weights
from jaxrlvr.model.row_layout import Separate


def logits_of(params, tokens_BT, spec, segments_BT=None, positions_BT=None):
  segments_BT = jnp.ones(tokens_BT.shape, jnp.int32) if segments_BT is None else segments_BT
  positions_BT = (
    jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape) if positions_BT is None else positions_BT
  )
  weights = fwd.cast(params, spec)
  hidden, _ = fwd.forward(
    weights, tokens_BT, positions_BT, fwd.causal(segments_BT, spec, Separate(tokens_BT.shape[1])), None, spec
  )
  return jnp.einsum("btd,vd->btv", hidden, fwd.head_VD(weights, spec))


def read_checkpoint(folder):
  """Returns (spec, params) of a Hugging Face directory, on one device."""
  model = hf_weights.open_model(folder)
  spec = dataclasses.replace(model.spec, vocab_chunk=30)
  return spec, hf_weights.load(model, spec, sharding.make_mesh(devices=jax.devices()[:1]))


def for_texts_of(spec, tokens):
  """Returns the spec with which texts of up to so many tokens are rotated, as `build_policy` does for a stage."""
  if spec.rope_scaling is None:
    return spec
  return dataclasses.replace(spec, rope_scaling=spec.rope_scaling.for_texts_of(tokens))
