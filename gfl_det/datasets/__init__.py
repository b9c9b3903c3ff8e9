"""Data sets in COCO format with checks, and the generator of the embedded data set."""

from gfl_det.datasets.coco import CocoDataset

__all__ = ['CocoDataset']
