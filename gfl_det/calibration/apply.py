"""Fitted calibrators inside a detector: ``test_cfg.calibrator = 'calibrator.json'``, and one of
intervals in ``test_cfg.interval_calibrator``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from gfl_det.calibration.distribution import DistributionCalibrator, EdgeDetections
from gfl_det.calibration.files import AnyCalibrator, load_any_calibrator, load_interval_calibrator
from gfl_det.calibration.intervals import IntervalCalibrator, check_applies
from gfl_det.datasets.annotations import listed
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import Detections
from gfl_det.ops.boxes import xyxy_to_xywh


def detection_wishes(config: ConfigDict) -> ConfigDict:
    """The test config that detection has to run under for its calibrator to work.

    Args:
        config: with ``calibrator`` and, for a distribution calibrator, ``rank_pool``: so many
            detections of an image are ranked by their predicted IoU before the ``max_per_img``
            best are kept.
    """
    if not _needs_edges(config):
        return config
    wanted = ConfigDict(config)
    wanted.with_distribution = True
    if config.get('max_per_img', -1) > 0:
        wanted.max_per_img = max(config.max_per_img, config.get('rank_pool', 0))
    return wanted


def calibrate_results(
    results: Sequence[InstanceData], config: ConfigDict, score_type: str, num_classes: int
) -> list[InstanceData]:
    """Detections after NMS with calibrated scores, again by descending score, and ``raw_scores``.

    No detection is cut, so AP changes only where a map gives equal scores to different ones, or
    where a distribution calibrator ranks them anew.

    Args:
        results: per image, found under :func:`detection_wishes`.
        config: test config with ``calibrator``, the path of its JSON.
        score_type: whose scores they are, the name of the head.
        num_classes: of the head.

    Raises:
        DataError: the file is no calibrator, or one for another head or number of classes.
    """
    path = config.calibrator
    calibrator = _load(path, _changed(path))
    calibrator.check_score_type(score_type)
    if len(calibrator.classes) != num_classes:
        raise DataError(
            f'{path} was fitted for the {len(calibrator.classes)} classes '
            f'{listed(calibrator.class_names)}, but the head has {num_classes}: fit one for it.'
        )
    calibrated = [_calibrated(result, calibrator) for result in results]
    if not _needs_edges(config):
        return calibrated
    if config.get('max_per_img', -1) > 0:
        calibrated = [result[: config.max_per_img] for result in calibrated]
    if not config.get('with_distribution', False):
        for result in calibrated:
            for name in ('edge_logits', 'bin_widths', 'prior_centres'):
                delattr(result, name)
    return calibrated


@lru_cache(maxsize=4)
def _load(path: str, _changed: int) -> AnyCalibrator:
    return load_any_calibrator(path)


def _needs_edges(config: ConfigDict) -> bool:
    path = config.get('calibrator')
    return bool(path) and isinstance(_load(path, _changed(path)), DistributionCalibrator)


def _calibrated(result: InstanceData, calibrator: AnyCalibrator) -> InstanceData:
    raw = result.scores
    if isinstance(calibrator, DistributionCalibrator):
        scores = calibrator.calibrate(edge_detections([result]))
    else:
        scores = calibrator.calibrate(raw.float().cpu().numpy(), result.labels.cpu().numpy())
    result.raw_scores = raw
    result.scores = torch.from_numpy(scores).to(raw)
    return result[result.scores.sort(descending=True, stable=True).indices]


def edge_detections(
    results: Sequence[InstanceData], images: Sequence[int] | None = None
) -> EdgeDetections:
    """Results of a head with ``with_distribution`` as arrays.

    Args:
        results: per image, at least one.
        images: their numbers; None: as they come.
    """
    numbers = range(len(results)) if images is None else images

    def values(name: str) -> np.ndarray:
        return np.concatenate([result[name].float().cpu().numpy() for result in results])

    boxes = xyxy_to_xywh(values('bboxes').astype(float))
    image = np.repeat(np.array(numbers, np.int64), [len(result) for result in results])
    label = np.concatenate([result.labels.cpu().numpy() for result in results])
    found = Detections(image, label.astype(np.int64), boxes, values('scores').astype(float))
    return EdgeDetections(found, values('edge_logits'), values('bin_widths'))


def check_class_names(path: str, names: Sequence[str], owner: str = 'the data set') -> None:
    """Refuse a calibrator whose classes are not those of a data set, in their order.

    Args:
        path: of the calibrator.
        names: of the classes.
        owner: whose they are, for the message.

    Raises:
        DataError: they differ, or the file is no calibrator.
    """
    _compare_names(path, load_any_calibrator(path).class_names, names, owner)


def check_interval_class_names(
    path: str, names: Sequence[str], owner: str = 'the data set'
) -> None:
    """As :func:`check_class_names`, of a calibrator of intervals.

    Raises:
        DataError: they differ, or the file is no calibrator of intervals.
    """
    _compare_names(path, load_interval_calibrator(path).class_names, names, owner)


def _compare_names(path: str, fitted: Sequence[str], names: Sequence[str], owner: str) -> None:
    if list(fitted) != list(names):
        raise DataError(
            f'{path} was fitted for the classes {listed(list(fitted))}, but {owner} has '
            f'{listed(list(names))}: fit a calibrator on data of these classes in this order.'
        )


def interval_factor(
    config: ConfigDict, score_type: str, num_classes: int
) -> float | tuple[float, ...]:
    """What intervals, all or those of each side, are stretched by: 1 without a calibrator.

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
    return calibrator.factors_at(level)


def _changed(path: str) -> int:
    return os.stat(path).st_mtime_ns if os.path.isfile(path) else 0


@lru_cache(maxsize=4)
def _load_intervals(path: str, _changed: int) -> IntervalCalibrator:
    return load_interval_calibrator(path)
