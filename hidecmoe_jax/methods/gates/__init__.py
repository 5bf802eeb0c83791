"""Gates: how an input finds its task, and when it belongs to none."""
