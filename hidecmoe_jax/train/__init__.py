"""One stage of one task: optimiser, step, and the loop over steps."""
