"""Tensor operations on boxes, edge distributions, intervals and convolutions; torch only."""
