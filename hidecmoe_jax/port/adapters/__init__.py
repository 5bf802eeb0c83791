"""LoRA adapters of other tools: their files and settings."""
