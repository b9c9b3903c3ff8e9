"""Fitted calibrators inside a detector, set in the test config.

``test_cfg.calibrator = 'calibrator.json'`` maps scores, ``test_cfg.interval_calibrator`` intervals,
and ``test_cfg.operating_point`` cuts each class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from gfl_det.calibration.distribution import DistributionCalibrator, EdgeDetections
from gfl_det.calibration.files import (
    AnyCalibrator,
    file_digest,
    load_any_calibrator,
    load_interval_calibrator,
    load_operating_point,
)
from gfl_det.calibration.intervals import IntervalCalibrator, check_applies
from gfl_det.calibration.maps import ScoreMaps
from gfl_det.calibration.operating_point import OperatingPoint
from gfl_det.datasets.annotations import listed
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import Detections
from gfl_det.ops.boxes import xyxy_to_xywh
from gfl_det.ops.intervals import FactorTable

EDGES = ('edge_logits', 'bin_widths', 'prior_centres')  # fields added by with_distribution


class HeadCalibration:
    """Calibrators of a head; each file is read once, when a test config first names it.

    A running detector keeps what it has read, even if the file changes. This is not a module, so
    that a head's state dict contains weights only.

    Args:
        score_type: Name of the head that predicts the scores.
        num_classes: Number of classes of the head.
    """

    def __init__(self, score_type: str, num_classes: int) -> None:
        self.score_type = score_type
        self.num_classes = num_classes
        self._scores: dict[str, DistributionCalibrator | ScoreMaps] = {}
        self._intervals: dict[str, IntervalCalibrator] = {}
        self._cuts: dict[tuple[str, str | None], list[float]] = {}

    def detection_config(self, config: ConfigDict) -> ConfigDict:
        """Test config to detect with, see :func:`detection_config`.

        Raises:
            DataError: If the file is not a calibrator, or was fitted for another head or number of
                classes.
        """
        if not config.get('calibrator'):
            return config
        return detection_config(config, self._of_scores(config.calibrator))

    def calibrate(self, results: Sequence[InstanceData], config: ConfigDict) -> list[InstanceData]:
        """Calibrate detections after NMS; adds ``raw_scores`` and sorts by calibrated score.

        Where the results have ``class_scores``, these are calibrated too, and ``raw_class_scores``
        are added.

        No detection is dropped, so AP changes only where a map makes different scores equal, or
        where a distribution calibrator ranks detections anew.

        Args:
            results: Detections per image, found with :meth:`detection_config`.
            config: Test config; without ``calibrator`` the results stay unchanged.

        Raises:
            DataError: If the file is not a calibrator, or was fitted for another head or number of
                classes.
        """
        if not config.get('calibrator'):
            return list(results)
        calibrator = self._of_scores(config.calibrator)
        calibrated = [_calibrated(result, calibrator) for result in results]
        if isinstance(calibrator, ScoreMaps):
            return calibrated
        if config.get('max_per_img', -1) > 0:
            calibrated = [result[: config.max_per_img] for result in calibrated]
        if not config.get('with_distribution', False):
            for result in calibrated:
                for name in EDGES:
                    delattr(result, name)
        return calibrated

    def interval_factor(self, config: ConfigDict) -> float | tuple[float, ...] | FactorTable:
        """Stretch of the intervals: 1 without a calibrator, else per side or per box.

        Args:
            config: Test config with ``interval_level``, ``interval_calibrator`` and
                ``interval_joint``, all optional.

        Raises:
            ConfigError: If the level lies outside (0, 1).
            DataError: If the file is not an interval calibrator, was fitted for another head or
                number of classes, or has no factor for the level or for whole boxes.
        """
        level, path = config.get('interval_level'), config.get('interval_calibrator')
        if level is None:
            return 1.0
        if not isinstance(level, (int, float)) or not 0 < level < 1:
            raise ConfigError(f'interval_level must lie between 0 and 1, not {level!r}.')
        joint = bool(config.get('interval_joint', False))
        if not path:
            if joint:
                raise ConfigError(
                    'interval_joint stretches intervals to whole boxes by fitted factors: give '
                    'interval_calibrator, what gfl-det intervals fit wrote.'
                )
            return 1.0
        if path not in self._intervals:
            calibrator = load_interval_calibrator(path)
            check_applies(calibrator, path, self.score_type, self.num_classes)
            self._intervals[path] = calibrator
        fitted = self._intervals[path]
        if not joint:
            return fitted.factors_at(level)
        if fitted.joint is None:
            raise DataError(
                f'{path} has no factors for whole boxes: fit it again with gfl-det intervals fit.'
            )
        return FactorTable(fitted.joint.table_at(level))

    def thresholds(self, config: ConfigDict) -> list[float] | None:
        """Least score per class; None without an operating point.

        Args:
            config: Test config with ``operating_point`` and ``calibrator``, both optional.

        Raises:
            DataError: If the file has no cuts, or cuts of another head, number of classes or
                calibrator.
        """
        path, calibrator = config.get('operating_point'), config.get('calibrator') or None
        if not path:
            return None
        if (path, calibrator) not in self._cuts:
            point = load_operating_point(path)
            check_cuts(point, path, calibrator)
            check_applies(point, path, self.score_type, self.num_classes)
            self._cuts[path, calibrator] = point.thresholds()
        return self._cuts[path, calibrator]

    def cut(self, results: Sequence[InstanceData], config: ConfigDict) -> list[InstanceData]:
        """Drop the detections below the cut of their class, after calibration.

        Raises:
            DataError: As for :meth:`thresholds`.
        """
        thresholds = self.thresholds(config)
        if thresholds is None:
            return list(results)
        return [each[reach_cuts(each, thresholds)] for each in results]

    def _of_scores(self, path: str) -> DistributionCalibrator | ScoreMaps:
        if path not in self._scores:
            calibrator = load_any_calibrator(path)
            calibrator.check_score_type(self.score_type)
            if len(calibrator.classes) != self.num_classes:
                raise DataError(
                    f'{path} was fitted for the {len(calibrator.classes)} classes '
                    f'{listed(calibrator.class_names)}, but the head has {self.num_classes}: fit '
                    'one for it.'
                )
            self._scores[path] = (
                calibrator
                if isinstance(calibrator, DistributionCalibrator)
                else ScoreMaps([each.map for each in calibrator.classes])
            )
        return self._scores[path]


def reach_cuts(found: InstanceData, thresholds: Sequence[float]) -> torch.Tensor:
    """Mask ``(N,)`` of the detections that reach the cut of their class.

    Example:
        >>> found = InstanceData(scores=torch.tensor([0.5, 0.5]), labels=torch.tensor([0, 1]))
        >>> reach_cuts(found, [0.5, 0.6])
        tensor([ True, False])
    """
    least = torch.tensor(thresholds, dtype=torch.float64, device=found.scores.device)
    return found.scores.double() >= least[found.labels]


def check_cuts(point: OperatingPoint, path: str, calibrator: str | None) -> None:
    """Refuse cuts that were chosen on the scores of another calibrator, or on raw ones.

    Args:
        point: The cuts.
        path: Their file, for the message.
        calibrator: File of the calibrator in use; None: raw scores are cut.

    Raises:
        DataError: If the cuts do not fit the scores, or the calibrator cannot be read.

    Example:
        >>> from gfl_det.calibration.calibrators import FitSource
        >>> from gfl_det.calibration.operating_point import Promise
        >>> source = FitSource('', (), 0)
        >>> point = OperatingPoint(Promise('recall', 0.9), 'GFLHead', None, (), source)
        >>> check_cuts(point, 'cuts.json', None)
    """
    digest = None if calibrator is None else file_digest(calibrator)
    if digest == point.calibrator:
        return
    chosen = 'raw scores' if point.calibrator is None else 'the scores of another calibrator'
    used = 'raw ones are' if calibrator is None else f'those of {calibrator} are'
    raise DataError(
        f'{path} has cuts of {chosen}, but {used} to be cut: choose cuts of these with gfl-det '
        'operate.'
    )


def detection_config(config: ConfigDict, calibrator: AnyCalibrator | ScoreMaps) -> ConfigDict:
    """Test config to detect with so that a calibrator can work.

    Args:
        config: Test config. For a distribution calibrator with ``rank_pool``, this many detections
            per image are ranked by predicted IoU before the best ``max_per_img`` are kept.
        calibrator: Score calibrator.

    Example:
        >>> detection_config(ConfigDict(score_thr=0.05), None)
        {'score_thr': 0.05}
    """
    if not isinstance(calibrator, DistributionCalibrator):
        return config
    wanted = ConfigDict(config)
    wanted.with_distribution = True
    if config.get('max_per_img', -1) > 0:
        wanted.max_per_img = max(config.max_per_img, config.get('rank_pool', 0))
    return wanted


def _calibrated(
    result: InstanceData, calibrator: DistributionCalibrator | ScoreMaps
) -> InstanceData:
    raw, every = result.scores, result.get('class_scores')
    if isinstance(calibrator, ScoreMaps):
        maps = calibrator.to(raw.device)
        scores = maps(raw, result.labels)
        if every is not None:
            labels = torch.arange(every.shape[1], device=every.device).expand_as(every)
            result.class_scores = maps(every, labels)
    else:
        found = edge_detections([result])
        scores = torch.from_numpy(calibrator.calibrate(found)).to(raw)
        if every is not None:
            mapped = calibrator.calibrate_classes(found, every.double().cpu().numpy())
            result.class_scores = torch.from_numpy(mapped).to(every)
    if every is not None:
        result.raw_class_scores = every
    result.raw_scores, result.scores = raw, scores
    return result[scores.sort(descending=True, stable=True).indices]


def edge_detections(
    results: Sequence[InstanceData], images: Sequence[int] | None = None
) -> EdgeDetections:
    """Convert results of a head with ``with_distribution`` to arrays.

    Args:
        results: Results per image, at least one.
        images: Image numbers; None: numbered in order.

    Example:
        >>> box, score = torch.tensor([[0.0, 0, 4, 3]]), torch.tensor([0.5])
        >>> result = InstanceData(bboxes=box, scores=score)
        >>> result.labels, result.bin_widths = torch.zeros(1, dtype=int), torch.full((1, 4), 8.0)
        >>> result.edge_logits = torch.zeros(1, 4, 17)
        >>> edge_detections([result], images=[3]).detections.boxes
        array([[0., 0., 4., 3.]])
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
    """Refuse a calibrator whose classes differ from a dataset's in names or order.

    Args:
        path: Path of the calibrator file.
        names: Class names.
        owner: Owner of the classes, for the message.

    Raises:
        DataError: If the classes differ, or the file is not a calibrator.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from gfl_det.calibration.calibrators import *
        >>> from gfl_det.calibration.files import save_calibrator
        >>> from gfl_det.calibration.maps import Platt
        >>> folder, source = TemporaryDirectory(), FitSource('', (), 9)
        >>> path = Path(folder.name) / 'calibrator.json'
        >>> cat = ClassMap('cat', Platt(2.0, 0.5), 'fitted', 0.1, 0.2, 9)
        >>> save_calibrator(DetectionCalibrator(Settings(), 'GFLHead', (cat,), source), path)
        >>> check_class_names(str(path), ['cat'])
    """
    _compare_names(path, load_any_calibrator(path).class_names, names, owner)


def check_interval_class_names(
    path: str, names: Sequence[str], owner: str = 'the data set'
) -> None:
    """Same as :func:`check_class_names`, for an interval calibrator.

    Raises:
        DataError: If the classes differ, or the file is not an interval calibrator.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from gfl_det.calibration.calibrators import FitSource
        >>> from gfl_det.calibration.files import save_calibrator
        >>> folder, source = TemporaryDirectory(), FitSource('', (), 9)
        >>> path = Path(folder.name) / 'intervals.json'
        >>> fitted = IntervalCalibrator((0.9,), ((1.0,) * 4,), 'GFLHead', ('cat',), 0.5, source)
        >>> save_calibrator(fitted, path)
        >>> check_interval_class_names(str(path), ['cat'])
    """
    _compare_names(path, load_interval_calibrator(path).class_names, names, owner)


def check_cut_class_names(path: str, names: Sequence[str], owner: str = 'the data set') -> None:
    """Same as :func:`check_class_names`, for the cuts of an operating point.

    Raises:
        DataError: If the classes differ, or the file has no cuts.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from gfl_det.calibration.calibrators import FitSource
        >>> from gfl_det.calibration.files import save_operating_point
        >>> from gfl_det.calibration.operating_point import ClassCut, Promise
        >>> cuts = (ClassCut('cat', 0.4, kept=20, right=19, gts=25, more=0),)
        >>> folder, source = TemporaryDirectory(), FitSource('', (), 9)
        >>> point = OperatingPoint(Promise('precision', 0.9), 'GFLHead', None, cuts, source)
        >>> path = Path(folder.name) / 'cuts.json'
        >>> save_operating_point(point, path)
        >>> check_cut_class_names(str(path), ['cat'])
    """
    _compare_names(path, load_operating_point(path).class_names, names, owner)


def _compare_names(path: str, fitted: Sequence[str], names: Sequence[str], owner: str) -> None:
    if list(fitted) != list(names):
        raise DataError(
            f'{path} was fitted for the classes {listed(list(fitted))}, but {owner} has '
            f'{listed(list(names))}: fit a calibrator on data of these classes in this order.'
        )
