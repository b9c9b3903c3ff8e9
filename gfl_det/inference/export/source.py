"""What is exported: a detector from a config and a checkpoint, and its description in the file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mmdet.models.detectors import SingleStageDetector
from mmengine.config import Config
from mmengine.model import BaseModel

from gfl_det.calibration.calibrators import DetectionCalibrator
from gfl_det.calibration.distribution import DistributionCalibrator
from gfl_det.calibration.files import load_any_calibrator
from gfl_det.errors import ConfigError, DataError
from gfl_det.inference.export.graph import Intervals
from gfl_det.inference.export.preprocessing import Preprocessing
from gfl_det.inference.loading import load_detector
from gfl_det.inference.stored_config import SUPPRESSIONS
from gfl_det.models.heads import GFLHead
from gfl_det.version import __version__

DEFAULT_LEVEL = 0.9
KEY = 'gfl_det'
FORMAT = 1


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


@dataclass(frozen=True)
class Description:
    """Everything that a runtime needs beside the graph.

    Args:
        name: of the config.
        head: type of the head, whose scores these are.
        classes: names in the order of the labels.
        preprocessing: from a picture to the inputs.
        settings: the head's ``test_cfg``: ``score_thr``, ``nms_pre``, ``nms``, ``min_bbox_size``
            and ``max_per_img``.
        outputs: names of the graph's outputs.
        nms: whether suppression is inside the graph.
        calibrated: whether a calibrator is inside.
        level: of the edges' intervals; None: there are none.
        precision: ``float32`` or ``int8``.
        version: of the gfl_det that exported it.
    """

    name: str
    head: str
    classes: list[str]
    preprocessing: Preprocessing
    settings: dict[str, Any]
    outputs: list[str]
    nms: bool
    calibrated: bool
    level: float | None = None
    precision: str = 'float32'
    version: str = field(default=__version__)

    def to_json(self) -> str:
        """As text."""
        content = dict(vars(self), preprocessing=self.preprocessing.to_json(), format=FORMAT)
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str | None, source: str) -> Description:
        """What :meth:`to_json` wrote.

        Args:
            text: None: there was none.
            source: name of the file, for messages.

        Raises:
            DataError: it is not of this package, or of a later format.
        """
        if not text:
            raise DataError(f'{source} was not written by gfl-det export: export it there.')
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f'{source} has a description that is not JSON: export it again.'
            ) from error
        if not isinstance(content, dict) or content.pop('format', None) != FORMAT:
            content = content if isinstance(content, dict) else {}
            raise DataError(
                f'{source} was written by gfl_det {content.get("version")!s:.60} in a format that '
                f'gfl_det {__version__} does not read: export it again.'
            )
        try:
            preprocessing = Preprocessing.from_json(content.pop('preprocessing'))
            nms = content['settings'].get('nms')
            if nms is not None and nms.get('type', 'nms') not in SUPPRESSIONS:
                raise ValueError(f'nms of the type {nms["type"]!r:.60}')  # mmcv evaluates its name
            return cls(preprocessing=preprocessing, **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'{source} describes itself wrongly ({error!r}): export it again.'
            ) from error
