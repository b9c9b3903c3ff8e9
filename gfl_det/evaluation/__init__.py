"""COCO's measures, by pycocotools or several times faster by an optional package; VOC's."""

from gfl_det.evaluation.calibration_metric import VOCMetric
from gfl_det.evaluation.coco_metric import CocoMetric

__all__ = ['CocoMetric', 'VOCMetric']
