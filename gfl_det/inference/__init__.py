"""Trained detectors in use: from files to results, and a faster copy."""

from .inferencer import GFLInferencer
from .optimize import optimize_for_inference
from .results import ImageResult, Results

__all__ = ['GFLInferencer', 'ImageResult', 'Results', 'optimize_for_inference']
