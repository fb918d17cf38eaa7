"""The sampling loop: prompts in, responses with their log-probabilities out."""

from jaxrlvr.sampling.decode import Rollout, Sampling, sample

__all__ = ["Rollout", "Sampling", "sample"]
