"""The policy: its spec, families of models, the one forward pass, adapters, scoring, Hugging Face and PEFT files."""
