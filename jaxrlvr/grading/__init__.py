"""Verdicts on batches of responses, in worker processes that can be killed, and elections by them. No jax."""

from jaxrlvr.grading.service import Job, Service

__all__ = ["Job", "Service"]
