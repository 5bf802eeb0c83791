"""Pocket data: drawn pictures with ground truth, captions and questions about them, and the seven small tasks."""
