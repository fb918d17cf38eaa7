"""The tags between which a response thinks: the one place that spells them."""

THINK, THINK_END = "<think>", "</think>"
