"""Boxes, edge distributions, intervals and convolutions on tensors: torch alone."""
