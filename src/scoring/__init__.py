"""Scores predictions and baselines, and writes reports and figures."""
