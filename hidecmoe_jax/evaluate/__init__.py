"""Answers to questions nobody names the task of, and rows of the accuracy matrix made of them."""
