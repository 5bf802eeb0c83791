"""Weights in and out: checkpoints of other tools become base models and experts here, and the way back."""
