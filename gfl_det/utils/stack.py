"""The call stack, read where the interfaces of libraries do not tell enough; only here.

Python does not say who imports a module; mmengine does not say which part of a config it was
building when a constructor failed, nor from which settings. Messages to the user name these.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

IMPORT_MACHINERY = 'importlib._bootstrap'


def importing_module(*passed_over: str) -> str:
    """Name the module whose import statement is being carried out, from within an import finder.

    Args:
        *passed_over: Modules between the statement and the caller, such as the finder's own.
    """
    frame = sys._getframe(1)
    while frame.f_back and _module(frame) in (IMPORT_MACHINERY, *passed_over):
        frame = frame.f_back
    return _module(frame)


def modules_of(error: BaseException) -> list[str]:
    """Name the modules that an error passed through, the one that raised it last."""
    return [_module(frame) for frame, _ in _frames(error)]


def calls_of(error: BaseException, function: str) -> list[dict[str, Any]]:
    """Return the local variables of each call of a function that an error came out of."""
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
