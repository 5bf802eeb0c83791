"""How a task is learned: the learner, the hooks of a method, and the family of routed expert methods."""
