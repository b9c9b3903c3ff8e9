"""Measurements against MMDetection: the same weights and inputs, in turns, in one process."""
