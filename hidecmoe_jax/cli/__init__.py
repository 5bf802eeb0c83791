"""Command line: one module per sub-command; the docstring and annotations of its function are its help text."""
