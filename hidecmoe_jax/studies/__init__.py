"""Questions asked of finished runs: which layers are alike, what is unknown, what an edit would cost."""
