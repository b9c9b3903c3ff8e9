"""Explanations, from the call stack, of faults that libraries leave unexplained.

Python does not say which module imports another; mmengine does not say which part of a config
failed to build, nor its settings. Messages to the user name them. No other module inspects the
stack.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from gfl_det.errors import SetupError

if TYPE_CHECKING:
    from torch import nn

IMPORT_MACHINERY = 'importlib._bootstrap'
BUILDER = 'build_from_cfg'  # mmengine's function that instantiates a part from its settings
# Errors that constructors raise for invalid settings.
FAULTS = (AssertionError, AttributeError, KeyError, TypeError, ValueError)


def importing_module(*passed_over: str) -> str:
    """Name the module whose import statement is running, from within an import finder.

    Args:
        *passed_over: Modules between the statement and the caller, such as the finder's own.
    """
    frame = sys._getframe(1)
    while frame.f_back and _module(frame) in (IMPORT_MACHINERY, *passed_over):
        frame = frame.f_back
    return _module(frame)


def modules_of(error: BaseException) -> list[str]:
    """Name the modules that an error passed through; the last one raised it."""
    return [_module(frame) for frame, _ in _frames(error)]


def calls_of(error: BaseException, function: str) -> list[dict[str, Any]]:
    """Return the local variables of each call of a function that an error passed through."""
    return [frame.f_locals for frame, _ in _frames(error) if frame.f_code.co_name == function]


def place_of(error: BaseException) -> str:
    """Return the file and line that raised an error."""
    places = [f'{frame.f_code.co_filename}:{line}' for frame, line in _frames(error)]
    return places[-1] if places else 'an unknown place'


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get('__name__', ''))


def building_fault(error: BaseException) -> str | None:
    """Explain which part of a config could not be built, with its settings.

    Args:
        error: Error raised by a command.

    Returns:
        One sentence, or None if no part was being built.
    """
    from gfl_det.utils.console import few

    parts = calls_of(error, BUILDER)
    if not parts:
        return None
    reason = str(error.args[0] if error.args else '').partition('\n')[0].partition('. ')[0]
    kind = parts[-1].get('obj_cls')
    if kind is None:
        return f'A part of the config cannot be built: {reason}.'
    settings = few([f'{key}={value!r}' for key, value in _plain(parts[-1].get('args')).items()])
    cure = f'correct its settings ({settings})' if settings else 'correct its settings'
    name = getattr(kind, '__name__', str(kind))
    where = place_of(error)  # the fault may lie in a user's own class
    return (
        f'{name} of the config cannot be built ({type(error).__name__}: {reason}; at {where}): '
        f'{cure}.'
    )


def move(model: nn.Module, device: str) -> nn.Module:
    """Move a model to a device.

    Raises:
        SetupError: If the device does not exist or torch cannot use it.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition('\n')[0].rstrip('.')
        raise SetupError(
            f'The device {device!r} cannot be used ({reason}): use cpu, or run `gfl-det doctor`.'
        ) from error


def _plain(settings: Any) -> dict[str, Any]:
    kinds = (bool, int, float, str)
    return {key: value for key, value in dict(settings or {}).items() if isinstance(value, kinds)}
