"""Sources of an export: a detector from config and checkpoint, and its metadata in the file."""

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
    """A detector to export, with its classes, pipeline and calibrators."""

    model: BaseModel  # one-stage with a GFL head; in eval mode on the CPU
    name: str  # name of its config
    classes: tuple[str, ...]
    pipeline: list[dict[str, Any]]  # of the test dataset
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
    """Build a detector and load its weights for export.

    Args:
        cfg: The config.
        name: Name of the config, for messages and metadata.
        checkpoint: File or URL of the weights.
        calibrator: Score calibrator file; None: the config's, if any.
        intervals: Interval calibrator file; None: the config's, if any.
        level: Level of the intervals, in (0, 1); None: the config's, or 0.9.

    Raises:
        GFLDetError: If export does not support the config, or something does not fit it.
    """
    settings = dict(calibrator=calibrator, interval_calibrator=intervals, interval_level=level)
    loaded = load_detector(checkpoint, cfg, 'cpu', settings)
    head = getattr(loaded.model, 'bbox_head', None)
    if not isinstance(loaded.model, SingleStageDetector) or not isinstance(head, GFLHead):
        raise ConfigError(
            f'{name} has no GFL head to export ({type(head or loaded.model).__name__}): give a '
            'config of gfl_det, or insert its head with gfl-det swap-head.'
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
    """Load a calibrator that maps scores independently.

    Raises:
        ConfigError: If the calibrator also needs neighbouring detections, unsupported in graphs.
        DataError: If the file is not a calibrator.
    """
    found = load_any_calibrator(path) if path else None
    if isinstance(found, DistributionCalibrator):
        raise ConfigError(
            f"{path} needs detections' edges and neighbours, but graphs can only map scores: give "
            '--calibrator a file of another method, or remove test_cfg.calibrator.'
        )
    return found


@dataclass(frozen=True)
class Description:
    """Metadata that a runtime needs beside the graph.

    Args:
        name: Name of the config.
        head: Type of the head that predicts the scores.
        classes: Class names in label order.
        preprocessing: Steps from a picture to the inputs.
        settings: The head's ``test_cfg``: ``score_thr``, ``nms_pre``, ``nms``, ``min_bbox_size``
            and ``max_per_img``; ``with_class_scores``, if results have them; and the
            least scores ``cuts`` per class, if the detector has an operating point.
        outputs: Names of the graph's outputs.
        nms: Whether the graph includes NMS.
        calibrated: Whether the graph includes a calibrator.
        level: Level of the edge intervals; None: no intervals.
        precision: ``float32`` or ``int8``.
        version: Version of gfl_det that exported the file.
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
        """Convert to text."""
        content = dict(vars(self), preprocessing=self.preprocessing.to_json(), format=FORMAT)
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str | None, source: str) -> Description:
        """Restore from the output of :meth:`to_json`.

        Args:
            text: Stored text; None: the file has none.
            source: File name, for messages.

        Raises:
            DataError: If the text is not from gfl_det, or in a later format.
        """
        if not text:
            raise DataError(f'{source} was not written by gfl-det export: export it again.')
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f'The metadata of {source} is not JSON: export it again.') from error
        if not isinstance(content, dict) or content.pop('format', None) != FORMAT:
            content = content if isinstance(content, dict) else {}
            raise DataError(
                f'{source} was written by gfl_det {content.get("version")!s:.60} in a format that '
                f'gfl_det {__version__} cannot read: export it again.'
            )
        try:
            preprocessing = Preprocessing.from_json(content.pop('preprocessing'))
            nms = content['settings'].get('nms')
            if nms is not None and nms.get('type', 'nms') not in SUPPRESSIONS:
                raise ValueError(f'nms of the type {nms["type"]!r:.60}')  # mmcv evaluates its name
            return cls(preprocessing=preprocessing, **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'The metadata of {source} is invalid ({error!r}): export it again.'
            ) from error
