"""COCO's measures, by pycocotools or several times faster by an optional package."""

from gfl_det.evaluation.coco_metric import CocoMetric

__all__ = ['CocoMetric']
