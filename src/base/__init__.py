"""Shared by all commands and independent of depth: types, files, signals, command-line arguments, errors."""
