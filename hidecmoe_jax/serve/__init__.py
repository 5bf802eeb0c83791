"""Serving over HTTP: one warm process that answers chat completions in OpenAI's form with a run or a base model."""
