"""ONNX files of a detector, written by torch's exporter."""

from __future__ import annotations

import copy
import importlib
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from types import ModuleType
from typing import Any

import torch

from gfl_det.calibration.maps import ScoreMaps
from gfl_det.compat.deform import traceable
from gfl_det.errors import ConfigError, SetupError
from gfl_det.inference.export.candidates import translations
from gfl_det.inference.export.graph import INPUTS, DetectionGraph, Outputs
from gfl_det.inference.export.source import KEY, Description, ExportSource
from gfl_det.inference.optimize import fold_batch_norms
from gfl_det.utils.choices import OPSETS
from gfl_det.utils.files import writing

EXTRAS = {
    'onnx': 'onnx',
    'onnxscript': 'onnx',
    'onnxruntime': 'onnx',
    'openvino': 'openvino',
    'nncf': 'openvino',
}


def require(name: str) -> ModuleType:
    """Import a package of one of the extras.

    Raises:
        SetupError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SetupError(
            f'This needs {name} ({error}): install it with pip install "gfl_det[{EXTRAS[name]}]".'
        ) from error


STRIDE = 32  # an input's sides are multiples of it, whatever the config pads to
# Of test_cfg, what a runtime needs to suppress by itself.
KEPT = ('score_thr', 'nms_pre', 'nms', 'min_bbox_size', 'max_per_img')
DECODING = 'decoding'  # where nodes come from that belong to no module


@dataclass(frozen=True)
class ExportSettings:
    """How a detector is exported.

    Args:
        outputs: see there.
        size: height and width of the input, px; None: any multiples of ``STRIDE``.
        opset: version of ONNX's operators.

    Raises:
        ConfigError: the size or the opset cannot be.
    """

    outputs: Outputs = field(default_factory=Outputs)
    size: tuple[int, int] | None = None
    opset: int = OPSETS.start

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise ConfigError(
                f'The --opset {self.opset} cannot be, as torch exports {OPSETS.start} to '
                f'{OPSETS.stop - 1}: take one of them.'
            )
        if self.size is not None:
            check_size(self.size, '--size')


def check_size(size: tuple[int, int], what: str) -> None:
    """Refuse a size of the input that the graph does not take.

    Args:
        size: height and width, px.
        what: the option that says it, for the message.

    Raises:
        ConfigError: A side is not a positive multiple of ``STRIDE``.
    """
    if min(size) <= 0 or any(side % STRIDE for side in size):
        near = ' '.join(str(max(round(side / STRIDE), 1) * STRIDE) for side in size)
        raise ConfigError(
            f'The {what} {size[0]} {size[1]} is not a pair of positive multiples of {STRIDE}: take '
            f'{near}.'
        )


def describe(source: ExportSource, settings: ExportSettings) -> Description:
    """The metadata of an exported detector.

    Raises:
        ConfigError: suppression changes scores that are to be calibrated.
    """
    head = source.model.bbox_head
    test_cfg = head.test_cfg.to_dict()
    nms = test_cfg.get('nms') or {}
    calibrated = source.calibrator is not None
    if calibrated and nms.get('type', 'nms') != 'nms':
        raise ConfigError(
            f'test_cfg.nms is {nms["type"]!r}, which changes scores before they are calibrated: '
            'export without the calibrator, or with greedy suppression.'
        )
    outputs = settings.outputs
    divisor = math.lcm(source.preprocessing.divisor, STRIDE)
    return Description(
        name=source.name,
        head=type(head).__name__,
        classes=list(source.classes),
        preprocessing=replace(source.preprocessing, size=settings.size, divisor=divisor),
        settings={key: test_cfg[key] for key in KEPT if key in test_cfg},
        outputs=outputs.names(calibrated),
        nms=outputs.nms,
        calibrated=calibrated,
        level=source.intervals.level if outputs.uncertainty else None,
    )


def write_onnx(
    source: ExportSource, path: str | PathLike[str], settings: ExportSettings | None = None
) -> Description:
    """Export a detector.

    Args:
        source: of :func:`.source.load_source`; stays as it is.
        path: the file to write; its folder is made.
        settings: how.

    Returns:
        What the file says of itself.

    Raises:
        SetupError: onnx or onnxscript is missing.
        ConfigError: the detector cannot be exported so.
        DataError: the file cannot be written.
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
    assert program is not None  # it is for the exporter before dynamo
    _tidy(program.model)
    program.model.metadata_props[KEY] = description.to_json()
    with writing(path) as target:
        program.save(target, external_data=False)
    return description


def build_graph(source: ExportSource, outputs: Outputs) -> DetectionGraph:
    """The module that is exported, with batch norms in the convolutions before them.

    Raises:
        ConfigError: see :class:`.graph.DetectionGraph`.
    """
    folded = copy.deepcopy(source.model)
    fold_batch_norms(folded)
    calibrator = source.calibrator
    maps = [each.map for each in calibrator.classes] if calibrator else []
    calibration = ScoreMaps(maps) if maps else None
    return DetectionGraph(folded, outputs, source.intervals, calibration).eval()


def _example(size: tuple[int, int] | None) -> tuple[torch.Tensor, ...]:
    """Inputs to trace with; none of the sides that may vary is 1 or equals another."""
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
    """Silence the exporter's notes on its own deprecations and on a missing torchvision."""
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
    """Name nodes after their modules, and drop what says where the exporting machine keeps files.

    Quantisation leaves nodes alone by their names.
    """
    for number, node in enumerate(model.graph):
        scopes = node.metadata_props.get('pkg.torch.onnx.name_scopes', '[]')
        parts = [each.strip(' \'"') for each in scopes.strip('[]').split(',')]
        module = next((each for each in reversed(parts[:-1]) if each), DECODING)
        if module.startswith('_'):  # the exporter's own bookkeeping
            module = DECODING
        node.name = f'{module}/{node.op_type}_{number}'
        node.metadata_props.clear()
        node.doc_string = None
    model.doc_string = None
