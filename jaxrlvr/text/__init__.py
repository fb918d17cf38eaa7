"""Between text and tokens: tokenizers, chat templates, stop strings, and the reading of answers. No jax."""
