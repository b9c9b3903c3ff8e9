"""Detectors for export, from a config and a checkpoint, or one sentence why not."""

from __future__ import annotations

from typing import Any, NamedTuple

from mmdet.models.detectors import SingleStageDetector
from mmengine.config import Config
from mmengine.model import BaseModel

from gfl_det.calibration.calibrators import DetectionCalibrator
from gfl_det.calibration.distribution import DistributionCalibrator
from gfl_det.calibration.files import load_any_calibrator
from gfl_det.errors import ConfigError
from gfl_det.inference.export.graph import Intervals
from gfl_det.inference.export.preprocessing import Preprocessing
from gfl_det.inference.loading import load_detector
from gfl_det.models.heads import GFLHead

DEFAULT_LEVEL = 0.9


class ExportSource(NamedTuple):
    """What is exported."""

    model: BaseModel  # of one stage, with a GFL head; in eval mode on the processor
    name: str  # of its config
    classes: tuple[str, ...]
    pipeline: list[dict[str, Any]]  # of the test data set
    preprocessing: Preprocessing
    calibrator: DetectionCalibrator | None  # of the scores
    intervals: Intervals  # of the edges


def load_source(
    cfg: Config,
    name: str,
    checkpoint: str,
    calibrator: str | None = None,
    intervals: str | None = None,
    level: float | None = None,
) -> ExportSource:
    """Build a detector and load its weights.

    Args:
        cfg: the config.
        name: of the config, for messages and metadata.
        checkpoint: weights, file or address.
        calibrator: file for scores; None: that of the config, if any.
        intervals: file for intervals; None: that of the config, if any.
        level: of the intervals, in (0, 1); None: that of the config, or 0.9.

    Raises:
        GFLDetError: the config cannot be exported, or something does not fit it.
    """
    settings = dict(calibrator=calibrator, interval_calibrator=intervals, interval_level=level)
    loaded = load_detector(checkpoint, cfg, 'cpu', settings)
    head = getattr(loaded.model, 'bbox_head', None)
    if not isinstance(loaded.model, SingleStageDetector) or not isinstance(head, GFLHead):
        raise ConfigError(
            f'{name} has no GFL head to export ({type(head or loaded.model).__name__}): give a '
            'config of gfl_det, or put its head in with gfl-det swap-head.'
        )
    test_cfg = head.test_cfg
    if test_cfg.get('interval_level') is None:
        test_cfg.interval_level = DEFAULT_LEVEL
    test_cfg.with_uncertainty = True  # --check compares the edges too
    kind = type(head).__name__
    scores = _score_calibrator(test_cfg.get('calibrator'))
    if scores is not None:
        scores.check_score_type(kind)
    return ExportSource(
        model=loaded.model.requires_grad_(False),
        name=name,
        classes=loaded.classes,
        pipeline=loaded.pipeline,
        preprocessing=Preprocessing.of(loaded.pipeline, cfg.model.get('data_preprocessor') or {}),
        calibrator=scores,
        intervals=Intervals(
            float(test_cfg.interval_level), head.calibration.interval_factor(test_cfg)
        ),
    )


def _score_calibrator(path: str | None) -> DetectionCalibrator | None:
    """A calibrator of maps from score to score.

    Raises:
        ConfigError: it ranks detections by their neighbours, which no graph does.
        DataError: The file is not a calibrator.
    """
    found = load_any_calibrator(path) if path else None
    if isinstance(found, DistributionCalibrator):
        raise ConfigError(
            f"{path} reads detections' edges and neighbours, and a graph maps scores alone: give "
            '--calibrator the file of another method, or drop test_cfg.calibrator.'
        )
    return found
