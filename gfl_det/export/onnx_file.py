"""From a detector to an ONNX file by torch's exporter."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel

from ..calibration.calibrators import DetectionCalibrator
from ..errors import ConfigError
from ..inference.optimize import fold_batch_norms
from .calibrator import Calibration
from .description import KEY, Description
from .extras import require
from .graph import INPUTS, DetectionGraph, Outputs
from .preprocessing import Preprocessing
from .suppression import translations

OPSETS = range(18, 24)  # those that the exporter writes, and the runtimes read
STRIDE = 32  # an input's sides are multiples of it, whatever the config pads to
DECODING = 'decoding'  # where nodes are from that are no part of a module


@dataclass(frozen=True)
class Export:
    """How a detector is exported.

    Args:
        outputs: see there.
        calibrator: to put inside, or None.
        size: height and width of the input, px; None: any multiples of ``STRIDE``.
        opset: version of ONNX's operators.

    Raises:
        ConfigError: the size or the opset cannot be.
    """

    outputs: Outputs = field(default_factory=Outputs)
    calibrator: DetectionCalibrator | None = None
    size: tuple[int, int] | None = None
    opset: int = 18

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise ConfigError(
                f'--opset is {self.opset}, and torch exports {OPSETS.start} to {OPSETS.stop - 1}.'
            )
        if self.size and (min(self.size) <= 0 or any(side % STRIDE for side in self.size)):
            raise ConfigError(
                f'--size {self.size[0]} {self.size[1]} must be multiples of {STRIDE}.'
            )


def describe(detector: BaseModel, name: str, export: Export) -> Description:
    """The metadata of an exported detector."""
    head, settings = detector.bbox_head, dict(detector.bbox_head.test_cfg)
    kept = ('score_thr', 'nms_pre', 'nms', 'min_bbox_size', 'max_per_img')
    nms = settings.get('nms')
    if nms is not None:
        settings['nms'] = dict(nms)
        if export.calibrator is not None and nms.get('type', 'nms') != 'nms':
            raise ConfigError(
                f'test_cfg.nms is {nms.get("type")!r}, which changes scores before they are '
                'calibrated: export without the calibrator, or with greedy suppression.'
            )
    return Description(
        name=name,
        head=type(head).__name__,
        classes=list(detector.dataset_meta['classes']),
        preprocessing=Preprocessing.of(detector.cfg, export.size),
        settings={key: settings[key] for key in kept if key in settings},
        outputs=export.outputs.names(export.calibrator is not None),
        nms=export.outputs.nms,
        calibrated=export.calibrator is not None,
    )


def write_onnx(
    detector: BaseModel, name: str, path: str | PathLike[str], export: Export
) -> Description:
    """Export a detector.

    Args:
        detector: of :func:`.source.load_detector`; stays as it is.
        name: of its config.
        path: the file to write; its folder is made.
        export: how.

    Returns:
        What the file says of itself.

    Raises:
        SetupError: onnx or onnxscript is missing.
        ConfigError: the detector cannot be exported so.
    """
    for package in ('onnx', 'onnxscript'):
        require(package)
    description = describe(detector, name, export)
    folded = copy.deepcopy(detector)
    fold_batch_norms(folded)
    calibrator = export.calibrator
    calibration = Calibration([each.map for each in calibrator.classes]) if calibrator else None
    graph = DetectionGraph(folded, export.outputs, calibration).eval()
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph,
            _example(export.size),
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(export.size),
            input_names=list(INPUTS),
            output_names=description.outputs,
            opset_version=export.opset,
            custom_translation_table=translations(),
            verbose=False,
        )
    if program is None:  # which the exporter's types allow
        raise ConfigError(f'{name} was not exported: torch.onnx.export gave nothing.')
    _tidy(program.model)
    program.model.metadata_props[KEY] = description.to_json()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    program.save(target, external_data=False)
    return description


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
    import logging

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
