"""Foundations: user errors, strict configuration, pytrees as flat dicts, random keys, shardings and paths."""
