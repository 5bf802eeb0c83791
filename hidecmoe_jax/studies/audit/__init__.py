"""Audit of a stream and of runs on it: leaks, what the text gives away, shared answers, unequal budgets."""
