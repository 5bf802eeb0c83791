"""Imports: files of other formats become task folders.

A reader of a family of formats yields plain objects (`tables`, `columns`, `official`); `spelling` gives them the keys
and roles of LLaVA JSON and counts what it changes; `drafts` makes checked records of them; `task_writer` writes. What
cannot be read is refused with all its problems, and nothing is written.
"""
