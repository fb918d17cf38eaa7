"""Figures from recorded rollouts: accuracy, saturation, reasoning, predictions. numpy only."""
