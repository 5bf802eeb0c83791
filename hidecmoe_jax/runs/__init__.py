"""A run on disk: one writer, one folder per finished task, checkpoints in between, and nothing half-written
in sight."""
