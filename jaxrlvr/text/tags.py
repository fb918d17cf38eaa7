"""Spells the tags around a response's thinking. All other code takes them from here."""

THINK, THINK_END = "<think>", "</think>"
