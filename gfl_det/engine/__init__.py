"""Runs of a config: the runner, its hooks, and the checks and edits before it starts."""
