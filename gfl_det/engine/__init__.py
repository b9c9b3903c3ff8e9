"""Training and testing runs: the runner, its hooks, checks and config edits before the start."""
