"""A training planned from a data set: what its config says, and why."""
