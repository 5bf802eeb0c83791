"""Studies of finished runs: layer similarity, unknown inputs, task overlap, false expansion, the cost of an edit."""
