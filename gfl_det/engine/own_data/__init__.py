"""Training plans for custom data sets: a config and the reason for each setting."""
