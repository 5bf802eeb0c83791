"""Inference: route each question to a task and generate its answer."""
