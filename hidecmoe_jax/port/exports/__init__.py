"""A run out: PEFT, vLLM, merged checkpoints, hub folders."""
