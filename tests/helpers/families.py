"""A family of models for tests, with every feature in which Llama, Qwen2 and Qwen3 differ."""

import dataclasses

from jaxrlvr.model.families import llama, qwen2, qwen3


def weights(spec):
  """Returns Llama's table of weights with Qwen2's biases and Qwen3's norms."""
  return llama.weights(spec) | qwen2.weights(spec) | qwen3.weights(spec)


RICH = dataclasses.replace(qwen3.QWEN3, model_type="rich", architecture="RichForCausalLM", weights=weights)
