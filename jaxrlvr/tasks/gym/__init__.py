"""Tasks of Reasoning Gym: problems and a verifier."""
