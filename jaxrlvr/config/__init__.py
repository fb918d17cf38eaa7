"""Configs: keys with their defaults, rules and meanings, the files that build them, and every check."""
