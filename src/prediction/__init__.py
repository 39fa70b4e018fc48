"""Predicts the depth of pictures and videos, and writes the output files."""
