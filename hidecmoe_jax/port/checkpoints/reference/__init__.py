"""A program of its own, run by path in an interpreter that has torch; nothing in the package imports it."""
