"""The commands: one module each, with the arguments they share."""
