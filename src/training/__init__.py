"""A training run: its options, its folder, its stages and the step."""
