"""The sampling loop: prompts in, responses with their log-probabilities out."""

from jaxrlvr.sampling.batch import sample
from jaxrlvr.sampling.types import Rollout, Sampling

__all__ = ["Rollout", "Sampling", "sample"]
