"""The embedded domain: problems, a verifier, and an exact judge of faithfulness."""
