"""Stand-in for ``mmcv._ext``, so that mmdet works without mmcv's compiled operators."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

import torch

from gfl_det.compat import deform
from gfl_det.compat import nms as suppression
from gfl_det.compat.imports import BUILD_LINE, LITE_LINE
from gfl_det.errors import MissingOpError, SetupError

EXTENSION = 'mmcv._ext'


@dataclass(frozen=True)
class MissingOp:
    """Operator missing in the stand-in: layers that use it can be built but not run."""

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error.

        Raises:
            MissingOpError: Always; the message names the operator and the command that builds it.
        """
        raise MissingOpError(
            f'The operator {self.name} exists only in compiled mmcv, and this mmcv has no '
            f'compiled operators: build it by `{BUILD_LINE}` (needs a C++ compiler and about '
            '15 minutes on two cores).'
        )


class StandInOps(ModuleType):
    """Module ``mmcv._ext`` with NMS and deformable convolution only."""

    nms = staticmethod(suppression.nms)
    softnms = staticmethod(suppression.softnms)
    deform_conv_forward = staticmethod(deform.deform_conv_forward)
    deform_conv_backward_input = staticmethod(deform.deform_conv_backward_input)
    deform_conv_backward_parameters = staticmethod(deform.deform_conv_backward_parameters)
    modulated_deform_conv_forward = staticmethod(deform.modulated_deform_conv_forward)
    modulated_deform_conv_backward = staticmethod(deform.modulated_deform_conv_backward)

    def __init__(self) -> None:
        super().__init__(EXTENSION, 'Operators of gfl_det that replace compiled ones.')
        self.__spec__ = ModuleSpec(EXTENSION, loader=None, origin=__file__)

    def __getattr__(self, name: str) -> MissingOp:
        if name.startswith('_'):  # not an operator: Python queries __path__ and similar names
            raise AttributeError(f'module {EXTENSION!r} has no attribute {name!r}')
        return MissingOp(name)


def install() -> None:
    """Install the stand-in unless there are compiled operators, which must then load.

    Raises:
        SetupError: If mmcv is missing or its compiled operators fail to load.
    """
    if EXTENSION in sys.modules:
        return
    if find_spec('mmcv') is None:
        raise SetupError(
            f'gfl_det needs mmcv: run `{LITE_LINE}` (wheels only), or build mmcv with its '
            f'operators by `{BUILD_LINE}`.'
        )
    spec = find_spec(EXTENSION)
    if spec is not None:
        _load_compiled(spec)
        return
    stand_in = StandInOps()
    sys.modules[EXTENSION] = stand_in
    sys.modules['mmcv']._ext = stand_in  # type: ignore[attr-defined]  # as an import would do


def stand_in_is_used() -> bool:
    """Whether ``mmcv._ext`` is the stand-in instead of the compiled module."""
    return isinstance(sys.modules.get(EXTENSION), StandInOps)


def _load_compiled(spec: ModuleSpec) -> None:
    try:
        importlib.import_module(EXTENSION)
    except (ImportError, OSError) as error:
        reason = str(error).partition('\n')[0]
        raise SetupError(
            f'The compiled operators of mmcv in {spec.origin} do not load under torch '
            f'{torch.__version__} ({reason}): rebuild them by `{BUILD_LINE}`, or replace them by '
            f'`pip uninstall -y mmcv; {LITE_LINE}`.'
        ) from error
