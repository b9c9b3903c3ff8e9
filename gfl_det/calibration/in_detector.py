"""Fitted calibrators inside a detector: ``test_cfg.calibrator = 'calibrator.json'``, and one of
intervals in ``test_cfg.interval_calibrator``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from ..datasets.annotations import listed
from ..errors import ConfigError, DataError
from .calibrators import DetectionCalibrator
from .files import load_calibrator
from .interval_files import load_interval_calibrator
from .intervals import IntervalCalibrator, check_applies


def calibrate_results(
    results: Sequence[InstanceData], path: str, score_type: str, num_classes: int
) -> list[InstanceData]:
    """Detections after NMS with calibrated scores, again by descending score, and ``raw_scores``.

    No detection is cut, so AP changes only where a map gives equal scores to different ones.

    Args:
        results: per image, with ``scores (N,)`` and ``labels (N,)``.
        path: of the calibrator's JSON.
        score_type: whose scores they are, the name of the head.
        num_classes: of the head.

    Raises:
        DataError: the file is no calibrator, or one for another head or number of classes.
    """
    calibrator = _load(path, _changed(path))
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
    result.raw_scores = raw
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


def interval_factor(config: ConfigDict, score_type: str, num_classes: int) -> float:
    """What intervals are stretched by: 1 without a calibrator, or where none are asked for.

    Args:
        config: test config with ``interval_level`` and ``interval_calibrator``, both optional.
        score_type: the name of the head.
        num_classes: of the head.

    Raises:
        ConfigError: the level lies outside (0, 1).
        DataError: the file is no interval calibrator, one for another head or number of classes,
            or has no factor for the level.
    """
    level, path = config.get('interval_level'), config.get('interval_calibrator')
    if level is None:
        return 1.0
    if not isinstance(level, (int, float)) or not 0 < level < 1:
        raise ConfigError(f'interval_level is a share between 0 and 1, not {level!r}.')
    if not path:
        return 1.0
    calibrator = _load_intervals(path, _changed(path))
    check_applies(calibrator, path, score_type, num_classes)
    return calibrator.factor(level)


def _changed(path: str) -> int:
    return os.stat(path).st_mtime_ns if os.path.isfile(path) else 0


@lru_cache(maxsize=4)
def _load_intervals(path: str, _changed: int) -> IntervalCalibrator:
    return load_interval_calibrator(path)
