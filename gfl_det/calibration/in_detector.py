"""A fitted calibrator inside a detector: ``test_cfg.calibrator = 'calibrator.json'``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import torch
from mmengine.structures import InstanceData

from ..datasets.annotations import listed
from ..errors import DataError
from .calibrators import DetectionCalibrator
from .files import load_calibrator


def calibrate_results(
    results: Sequence[InstanceData], path: str, score_type: str, num_classes: int
) -> list[InstanceData]:
    """Detections after NMS with calibrated scores, again by descending score.

    No detection is cut, so AP changes only where a map gives equal scores to different ones.

    Args:
        results: per image, with ``scores (N,)`` and ``labels (N,)``.
        path: of the calibrator's JSON.
        score_type: whose scores they are, the name of the head.
        num_classes: of the head.

    Raises:
        DataError: the file is no calibrator, or one for another head or number of classes.
    """
    calibrator = _load(path, os.stat(path).st_mtime_ns if os.path.isfile(path) else 0)
    calibrator.check_score_type(score_type)
    if len(calibrator.classes) != num_classes:
        raise DataError(
            f'{path} was fitted for the {len(calibrator.classes)} classes '
            f'{listed(calibrator.class_names)}, but the head has {num_classes}: fit one for it.'
        )
    return [_calibrated(result, calibrator) for result in results]


@lru_cache(maxsize=4)
def _load(path: str, _changed: int) -> DetectionCalibrator:
    return load_calibrator(path)


def _calibrated(result: InstanceData, calibrator: DetectionCalibrator) -> InstanceData:
    raw = result.scores
    scores = calibrator.calibrate(raw.float().cpu().numpy(), result.labels.cpu().numpy())
    result.scores = torch.from_numpy(scores).to(raw)
    return result[result.scores.sort(descending=True, stable=True).indices]


def check_class_names(path: str, names: Sequence[str]) -> None:
    """Refuse a calibrator whose classes are not those of a data set, in their order.

    Raises:
        DataError: they differ, or the file is no calibrator.
    """
    fitted = load_calibrator(path).class_names
    if fitted != list(names):
        raise DataError(
            f'{path} was fitted for the classes {listed(fitted)}, but the data set has '
            f'{listed(names)}: fit a calibrator on data of these classes in this order.'
        )
