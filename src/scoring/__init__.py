"""Scores of predictions, what they are compared with, and the reports and pictures of both."""
