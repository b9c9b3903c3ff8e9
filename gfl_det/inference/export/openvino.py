"""Exported detectors in OpenVINO: files in its own format, float32 or int8."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gfl_det.errors import DataError
from gfl_det.inference.export.graph import INPUTS
from gfl_det.inference.export.onnx_file import DECODING, require
from gfl_det.inference.export.preprocessing import PreparedBatch
from gfl_det.inference.export.runtime import Arrays, ExportedDetector, check_file
from gfl_det.inference.export.source import KEY, Description

# Node names kept in float32, see onnx_file: decoding with its integral; in the head, edge scales
# and, for GFLv2, distribution statistics, neither of which is a module; GFLv2's quality network
# (DGQP); the calibrator, whose maps are steep.
FLOAT = (rf'^{DECODING}/.*', r'^bbox_head/.*', r'^bbox_head\.reg_conf.*', r'^calibration[./].*')


class OpenVINODetector(ExportedDetector):
    """Runs a detector of ``gfl-det export --out FILE.xml`` in OpenVINO.

    Args:
        path: The ``.xml`` file, with its ``.bin`` beside it.
        device: OpenVINO device name.
        threads: Number of CPU threads; 0: OpenVINO's choice.

    Raises:
        SetupError: If openvino is not installed.
        DataError: If the file is missing or was not exported by gfl_det.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = 'CPU', threads: int = 0) -> None:
        openvino = require('openvino')
        check_file(path, '.xml')
        try:
            model = openvino.Core().read_model(os.fspath(path))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DataError(f'OpenVINO cannot read {path}: {reason}') from error
        text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
        super().__init__(Description.from_json(text, os.fspath(path)))
        # Without the hint OpenVINO computes in bfloat16 where the CPU supports it.
        options: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32'}
        if threads:
            options['INFERENCE_NUM_THREADS'] = threads
        self.model = openvino.compile_model(model, device, options)

    def run(self, inputs: PreparedBatch) -> Arrays:
        outputs = self.model(dict(zip(INPUTS, inputs)))
        return {name: outputs[name] for name in self.description.outputs}


def write_openvino(onnx_path: Path, path: Path, description: Description) -> None:
    """Convert an exported ONNX file to OpenVINO format, in float32.

    Args:
        onnx_path: File from :func:`.onnx_file.write_onnx`.
        path: Output ``.xml`` file; a ``.bin`` is written beside it.
        description: Metadata of the ONNX file.
    """
    openvino = require('openvino')
    _save(openvino, openvino.Core().read_model(onnx_path), path, description)


def write_int8(
    onnx_path: Path,
    path: Path,
    description: Description,
    pictures: Iterable[PreparedBatch],
    count: int,
) -> None:
    """Quantise an exported ONNX file after training and write it in OpenVINO format.

    Convolutions of backbone, neck and towers become int8, with ranges measured on pictures; layers
    that read distributions stay float32, see ``FLOAT``.

    Args:
        onnx_path: File from :func:`.onnx_file.write_onnx`.
        path: Output ``.xml`` file; a ``.bin`` is written beside it.
        description: Metadata of the ONNX file.
        pictures: Prepared pictures of the training split, one per batch.
        count: Number of pictures to measure ranges on.

    Raises:
        SetupError: If openvino or nncf is not installed.
    """
    nncf, openvino = require('nncf'), require('openvino')
    logging.getLogger('nncf').setLevel(logging.WARNING)  # it logs every excluded node
    data = nncf.Dataset(pictures, lambda prepared: dict(zip(INPUTS, prepared)))
    # Nodes that produce outputs are named after them.
    kept = [*FLOAT, *(f'^{name}$' for name in description.outputs)]
    model = nncf.quantize(
        openvino.Core().read_model(onnx_path),
        data,
        subset_size=count,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(patterns=kept, validate=False),
    )
    _save(openvino, model, path, dataclasses.replace(description, precision='int8'))


def _save(openvino: Any, model: Any, path: Path, description: Description) -> None:
    model.set_rt_info(description.to_json(), KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path, compress_to_fp16=False)
