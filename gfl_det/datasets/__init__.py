"""Data sets: COCO files with checks, and the generator of the embedded one."""

from gfl_det.datasets.coco import CocoDataset

__all__ = ['CocoDataset']
