"""The frozen multimodal model: CLIP pair, projector, LLaMA decoder, LLaVA, and generation."""
