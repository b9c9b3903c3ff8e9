"""Trained detectors for other runtimes: ONNX files, OpenVINO's, and int8.

``tools/export_onnx.py`` writes them, :class:`.runtime.OnnxDetector` and
:class:`.openvino.OpenVINODetector` run them; docs/export.md has what each costs and brings.
"""

from .onnx_file import Export, write_onnx
from .openvino import OpenVINODetector, write_int8, write_openvino
from .runtime import ExportedDetector, OnnxDetector
from .source import load_detector

__all__ = [
    'Export',
    'ExportedDetector',
    'OnnxDetector',
    'OpenVINODetector',
    'load_detector',
    'write_int8',
    'write_onnx',
    'write_openvino',
]
