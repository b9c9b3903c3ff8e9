"""Exported detectors in OpenVINO: its own files, float32 or int8."""

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

# By their names, see onnx_file: decoding with its integral; of the head, the scaling of edges and,
# in GFLv2, the statistics of their distributions, neither of which is a module of its own; GFLv2's
# quality network (DGQP); the calibrator, whose maps are steep.
FLOAT = (rf'^{DECODING}/.*', r'^bbox_head/.*', r'^bbox_head\.reg_conf.*', r'^calibration[./].*')


class OpenVINODetector(ExportedDetector):
    """A detector of ``gfl-det export --out FILE.xml`` in OpenVINO.

    Args:
        path: the ``.xml`` file; its ``.bin`` lies beside it.
        device: of OpenVINO.
        threads: of the processor; 0: OpenVINO's choice.

    Raises:
        SetupError: openvino is missing.
        DataError: the file is none, or was not exported by gfl_det.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = 'CPU', threads: int = 0) -> None:
        openvino = require('openvino')
        check_file(path, '.xml')
        try:
            model = openvino.Core().read_model(os.fspath(path))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DataError(f'{path} is not a model that OpenVINO reads: {reason}') from error
        text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
        super().__init__(Description.from_json(text, os.fspath(path)))
        # Without the hint OpenVINO computes in bfloat16 where the processor can.
        options: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32'}
        if threads:
            options['INFERENCE_NUM_THREADS'] = threads
        self.model = openvino.compile_model(model, device, options)

    def run(self, inputs: PreparedBatch) -> Arrays:
        outputs = self.model(dict(zip(INPUTS, inputs)))
        return {name: outputs[name] for name in self.description.outputs}


def write_openvino(onnx_path: Path, path: Path, description: Description) -> None:
    """Write an exported ONNX file as OpenVINO's, in float32.

    Args:
        onnx_path: of :func:`.onnx_file.write_onnx`.
        path: the ``.xml`` file; a ``.bin`` goes beside it.
        description: of the ONNX file.
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
    """Quantise an exported ONNX file after training and write it as OpenVINO's.

    Convolutions of backbone, neck and towers go to int8, with ranges measured on pictures; what
    reads the distributions stays float32: see ``FLOAT``.

    Args:
        onnx_path: of :func:`.onnx_file.write_onnx`.
        path: the ``.xml`` file; a ``.bin`` goes beside it.
        description: of the ONNX file.
        pictures: prepared one by one; of the training split.
        count: of pictures to measure on.

    Raises:
        SetupError: openvino or nncf is missing.
    """
    nncf, openvino = require('nncf'), require('openvino')
    logging.getLogger('nncf').setLevel(logging.WARNING)  # it names each node it leaves alone
    data = nncf.Dataset(pictures, lambda prepared: dict(zip(INPUTS, prepared)))
    # A node that gives an output is named after it.
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
