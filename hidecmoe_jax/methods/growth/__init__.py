"""Growth: where a task gets new experts and what they begin as."""
