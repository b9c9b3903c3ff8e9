"""Faster inference of a trained detector."""

from .optimize import optimize_for_inference

__all__ = ['optimize_for_inference']
