"""Does a config learn eight pictures by heart? If not, or if it should not: which part is wrong."""
