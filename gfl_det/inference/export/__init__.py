"""Export of trained detectors to ONNX and OpenVINO, with int8 quantisation.

``gfl-det export`` writes the files, :class:`.runtime.OnnxDetector` and
:class:`.openvino.OpenVINODetector` run them; docs/results/export.md compares their speed and
accuracy.
"""

from gfl_det.inference.export.graph import Outputs
from gfl_det.inference.export.onnx_file import ExportSettings, ExportSource, load_source, write_onnx
from gfl_det.inference.export.runtime import (
    ExportedDetector,
    OnnxDetector,
    OpenVINODetector,
    write_int8,
    write_openvino,
)

Settings, Source = ExportSettings, ExportSource  # names in 0.1

__all__ = [
    'ExportSettings',
    'ExportSource',
    'ExportedDetector',
    'OnnxDetector',
    'OpenVINODetector',
    'Outputs',
    'Settings',
    'Source',
    'load_source',
    'write_int8',
    'write_onnx',
    'write_openvino',
]
