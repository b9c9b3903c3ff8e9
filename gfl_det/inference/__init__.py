"""Inference with trained detectors: from files to results, and an optimized copy."""

from gfl_det.inference.inferencer import GFLInferencer
from gfl_det.inference.optimize import optimize_for_inference
from gfl_det.inference.results import ImageResult, Results

__all__ = ['GFLInferencer', 'ImageResult', 'Results', 'optimize_for_inference']
