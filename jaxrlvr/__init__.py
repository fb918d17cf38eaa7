"""RLVR under weak supervision, in JAX."""
