"""The packages that only export needs: imported late, and missed in one sentence."""

from __future__ import annotations

import importlib
from types import ModuleType

from gfl_det.errors import SetupError

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
