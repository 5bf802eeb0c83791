"""Scores of result files, this project's and those of other evaluators: found, joined, scored in both forms, tested."""
