"""The built-in domain of last-digit arithmetic: a generator, a verifier, and an exact judge of faithfulness."""
