"""COCO's measures, by pycocotools or several times faster by an optional package; VOC's."""

from gfl_det.evaluation.coco_metric import CocoMetric
from gfl_det.evaluation.voc_metric import VOCMetric

__all__ = ['CocoMetric', 'VOCMetric']
