"""VOC metric with the names of custom classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.datasets import VOCDataset
from mmdet.evaluation import VOCMetric as MMDetVOCMetric

from gfl_det.registry import METRICS

VOC_CLASSES = tuple(VOCDataset.METAINFO['classes'])


@METRICS.register_module()
class VOCMetric(MMDetVOCMetric):
    """Drop-in for mmdet's ``VOCMetric``: same arguments, same numbers.

    In a folder whose name contains ``VOC2007`` or ``VOC2012``, mmdet's metric prints the AP of
    custom classes under VOC's names (``aeroplane``, ``bicycle``). This one prints their own names.
    """

    dataset_meta: Any

    def compute_metrics(self, results: Sequence[Any]) -> dict[str, float]:
        """Evaluate all results.

        Args:
            results: (gt, detections by class) of each image.
        """
        meta = self.dataset_meta or {}
        if has_own_classes(meta.get('classes', ())):
            self.dataset_meta = {**meta, 'dataset_type': None}
        try:
            return super().compute_metrics(results)
        finally:
            self.dataset_meta = meta


def has_own_classes(classes: Sequence[str]) -> bool:
    """Whether the classes differ from VOC's twenty, or in their order.

    Example:
        >>> has_own_classes(('cat', 'dog')), has_own_classes(VOC_CLASSES)
        (True, False)
    """
    return tuple(classes) != VOC_CLASSES
