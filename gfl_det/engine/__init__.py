"""Running a config: the runner, its hooks, and what is checked and edited before it."""
