"""Kinds of problems: each a generator, a verifier, perhaps a faithfulness judge. No jax."""
