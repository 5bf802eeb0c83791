"""Foreign checkpoints in: recognised, planned, streamed, checked."""
