"""ONNX files of detectors, written by torch's exporter.

The source is a detector from config and checkpoint; its metadata is stored in the file.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from types import ModuleType
from typing import Any, NamedTuple

import torch
from mmdet.models.detectors import SingleStageDetector
from mmengine.config import Config
from mmengine.model import BaseModel

from gfl_det.calibration.calibrators import DetectionCalibrator
from gfl_det.calibration.distribution import DistributionCalibrator
from gfl_det.calibration.files import load_any_calibrator
from gfl_det.calibration.maps import ScoreMaps
from gfl_det.compat.deform import traceable
from gfl_det.errors import ConfigError, DataError, SetupError
from gfl_det.inference.export.candidates import translations
from gfl_det.inference.export.graph import INPUTS, DetectionGraph, Intervals, Outputs, Preprocessing
from gfl_det.inference.loading import load_detector
from gfl_det.inference.optimize import fold_batch_norms
from gfl_det.inference.stored_config import SUPPRESSIONS
from gfl_det.models.heads import GFLHead
from gfl_det.utils.choices import OPSETS
from gfl_det.utils.files import writing
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


EXTRAS = {
    'onnx': 'onnx',
    'onnxscript': 'onnx',
    'onnxruntime': 'onnx',
    'openvino': 'openvino',
    'nncf': 'openvino',
    'pyarrow': 'ray',
    'ray': 'ray',
}


def require(name: str) -> ModuleType:
    """Import a package of an extra.

    Raises:
        SetupError: If the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SetupError(
            f'This needs {name} ({error}): install it with pip install "gfl_det[{EXTRAS[name]}]".'
        ) from error


STRIDE = 32  # input sides are multiples of it, whatever the config pads to
# Entries of test_cfg that a runtime needs for NMS.
KEPT = ('score_thr', 'nms_pre', 'nms', 'min_bbox_size', 'max_per_img')
DECODING = 'decoding'  # prefix of nodes that belong to no module


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export.

    Args:
        outputs: Outputs of the graph.
        size: Height and width of the input, px; None: variable, multiples of ``STRIDE``.
        opset: Version of the ONNX operator set.

    Raises:
        ConfigError: If the size or the opset is not supported.
    """

    outputs: Outputs = field(default_factory=Outputs)
    size: tuple[int, int] | None = None
    opset: int = OPSETS.start

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise ConfigError(
                f'torch cannot export --opset {self.opset}: give one from {OPSETS.start} to '
                f'{OPSETS.stop - 1}.'
            )
        if self.size is not None:
            check_size(self.size, '--size')


def check_size(size: tuple[int, int], what: str) -> None:
    """Refuse an input size that the graph does not accept.

    Args:
        size: Height and width in px.
        what: Option that set the size, for the message.

    Raises:
        ConfigError: If a side is not a positive multiple of ``STRIDE``.
    """
    if min(size) <= 0 or any(side % STRIDE for side in size):
        near = ' '.join(str(max(round(side / STRIDE), 1) * STRIDE) for side in size)
        raise ConfigError(
            f'The {what} {size[0]} {size[1]} is not a pair of positive multiples of {STRIDE}: use '
            f'{near}.'
        )


def describe(source: ExportSource, settings: ExportSettings) -> Description:
    """Metadata of an exported detector.

    Raises:
        ConfigError: If NMS changes scores that are to be calibrated.
    """
    head = source.model.bbox_head
    test_cfg = head.test_cfg.to_dict()
    nms = test_cfg.get('nms') or {}
    calibrated = source.calibrator is not None
    if calibrated and nms.get('type', 'nms') != 'nms':
        raise ConfigError(
            f'test_cfg.nms is {nms["type"]!r}, which changes scores before calibration: '
            'export without the calibrator, or use greedy NMS.'
        )
    outputs, cuts = settings.outputs, head.calibration.thresholds(head.test_cfg)
    divisor = math.lcm(source.preprocessing.divisor, STRIDE)
    return Description(
        name=source.name,
        head=type(head).__name__,
        classes=list(source.classes),
        preprocessing=replace(source.preprocessing, size=settings.size, divisor=divisor),
        settings={key: test_cfg[key] for key in KEPT if key in test_cfg}
        | ({'with_class_scores': True} if outputs.class_scores else {})
        | ({} if cuts is None else {'cuts': cuts}),
        outputs=outputs.names(calibrated),
        nms=outputs.nms,
        calibrated=calibrated,
        level=source.intervals.level if outputs.uncertainty else None,
    )


def write_onnx(
    source: ExportSource, path: str | PathLike[str], settings: ExportSettings | None = None
) -> Description:
    """Export a detector to an ONNX file.

    Args:
        source: Detector from :func:`.source.load_source`; it is not modified.
        path: Output file; its folder is created if missing.
        settings: Export settings; None: the defaults.

    Returns:
        The metadata in the file.

    Raises:
        SetupError: If onnx or onnxscript is missing.
        ConfigError: If the detector does not support these settings.
        DataError: If the file cannot be written.
    """
    for package in ('onnx', 'onnxscript'):
        require(package)
    settings = settings or ExportSettings()
    description = describe(source, settings)
    graph = build_graph(source, settings.outputs)
    with torch.no_grad(), _quiet(), traceable():
        program = torch.onnx.export(
            graph,
            _example(settings.size),
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(settings.size),
            input_names=list(INPUTS),
            output_names=description.outputs,
            opset_version=settings.opset,
            custom_translation_table=translations(),
            verbose=False,
        )
    assert program is not None  # None only from the exporter before dynamo
    _tidy(program.model)
    program.model.metadata_props[KEY] = description.to_json()
    with writing(path) as target:
        program.save(target, external_data=False)
    return description


def build_graph(source: ExportSource, outputs: Outputs) -> DetectionGraph:
    """Build the module to export, with batch norms folded into convolutions.

    Raises:
        ConfigError: See :class:`.graph.DetectionGraph`.
    """
    folded = copy.deepcopy(source.model)
    fold_batch_norms(folded)
    calibrator = source.calibrator
    maps = [each.map for each in calibrator.classes] if calibrator else []
    calibration = ScoreMaps(maps) if maps else None
    return DetectionGraph(folded, outputs, source.intervals, calibration).eval()


def _example(size: tuple[int, int] | None) -> tuple[torch.Tensor, ...]:
    """Example inputs for tracing; variable sides are distinct and larger than 1."""
    height, width = size or (192, 256)
    shape = torch.tensor([[height, width], [height - 7, width - 9]], dtype=torch.float32)
    return torch.randn(2, 3, height, width), shape, torch.ones(2, 2)


def _dynamic_shapes(size: tuple[int, int] | None) -> dict[str, dict[int, Any]]:
    dimension = torch.export.Dim
    batch = dimension('batch')
    sides = {} if size else {2: STRIDE * dimension('rows'), 3: STRIDE * dimension('columns')}
    first, *others = INPUTS
    return {first: {0: batch, **sides}, **{name: {0: batch} for name in others}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about its own deprecations and missing torchvision."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _tidy(model: Any) -> None:
    """Name nodes after their modules, and drop metadata with paths of the exporting machine.

    Quantisation excludes nodes by these names.
    """
    for number, node in enumerate(model.graph):
        scopes = node.metadata_props.get('pkg.torch.onnx.name_scopes', '[]')
        parts = [each.strip(' \'"') for each in scopes.strip('[]').split(',')]
        module = next((each for each in reversed(parts[:-1]) if each), DECODING)
        if module.startswith('_'):  # internals of the exporter
            module = DECODING
        node.name = f'{module}/{node.op_type}_{number}'
        node.metadata_props.clear()
        node.doc_string = None
    model.doc_string = None
