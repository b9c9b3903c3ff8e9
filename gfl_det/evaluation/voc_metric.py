"""VOC's metric under the names of own classes."""

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

    In a folder whose name has ``VOC2007`` or ``VOC2012`` mmdet's prints the AP of own classes under
    the names of VOC's: ``aeroplane``, ``bicycle``. This one prints their own.
    """

    dataset_meta: Any

    def compute_metrics(self, results: Sequence[Any]) -> dict[str, float]:
        """Count all results.

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
    """Whether classes are others than VOC's twenty, or in another order.

    Example:
        >>> has_own_classes(('cat', 'dog')), has_own_classes(VOC_CLASSES)
        (True, False)
    """
    return tuple(classes) != VOC_CLASSES
