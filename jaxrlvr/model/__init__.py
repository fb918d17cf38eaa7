"""The policy: its spec, the one table of its weights, the one forward pass, scoring, and Hugging Face files."""
