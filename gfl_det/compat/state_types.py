"""The values that mmengine writes into a checkpoint beside tensors, in forms safe to read.

``torch.load(weights_only=True)`` calls what is allow-listed with whatever arguments the file has.
The types themselves are therefore no safe entries: ``numpy.ndarray`` makes object arrays out of raw
bytes (a wild pointer), the state of a ``numpy.dtype`` can set its memory flags, and mmengine's
``HistoryBuffer`` needs ``getattr`` and overwrites methods of its class. Each entry here answers to
the name that a checkpoint uses, and builds plain numbers, arrays and histories only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pickle import UnpicklingError
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

NUMBERS = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')
NUMPY_CORES = ('numpy._core', 'numpy.core')  # its name in files written by numpy 2 and numpy 1


class NumberType:
    """A number type under construction, in the place of ``numpy.dtype``."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code not in NUMBERS:
            raise UnpicklingError(f'numpy arrays of type {code!r} are not supported')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ('<', '>'):  # of all the state only the byte order matters for numbers
            self.dtype = self.dtype.newbyteorder(state[1])


class LoadedArray(np.ndarray):
    """A numpy array from a checkpoint; pickles as a plain array again."""

    def __new__(cls) -> LoadedArray:
        """Make an empty array: a file fills it by its state, and cannot pass a buffer."""
        return super().__new__(cls, (0,))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, number, fortran, data = state
        if not isinstance(number, NumberType) or not isinstance(data, bytes):
            raise UnpicklingError('numpy arrays of other things than numbers are not supported')
        super().__setstate__((version, shape, number.dtype, fortran, data))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)


class LoadedHistory(HistoryBuffer):
    """A ``HistoryBuffer`` from a checkpoint, which becomes a real one when its state is set."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        logs, counts = state['_log_history'], state['_count_history']
        if not isinstance(logs, np.ndarray) or not isinstance(counts, np.ndarray):
            raise UnpicklingError('the history of a logged value is not an array')
        self.max_length = int(state['max_length'])
        self._log_history = logs.view(np.ndarray)
        self._count_history = counts.view(np.ndarray)
        self._set_default_statistics()  # the file's own table of methods is left aside
        self.__class__ = HistoryBuffer


class OneCycle:
    """Stands for the class of the one-cycle schedules, whose state names one of its functions."""


def rebuild_array(cls: type, shape: tuple[int, ...], code: bytes) -> LoadedArray:
    """Start an array as ``numpy._core.multiarray._reconstruct`` does; its state follows."""
    return LoadedArray()


def rebuild_number(number: NumberType, data: bytes) -> np.generic:
    """Return the numpy number that ``numpy._core.multiarray.scalar`` makes of its bytes."""
    if not isinstance(number, NumberType) or len(data) != number.dtype.itemsize:
        raise UnpicklingError('a numpy number has the wrong type or length')
    return np.frombuffer(data, number.dtype)[0]


def config_dict(items: dict[str, Any]) -> ConfigDict:
    """Return a ``ConfigDict``: dicts inside a data set's ``metainfo`` are saved as such."""
    if type(items) is not dict:
        raise UnpicklingError('a ConfigDict is made of something else than a dict')
    return ConfigDict(items)


def raw_bytes(text: str, encoding: str) -> bytes:
    """Return bytes that pickle wrote as text, in the place of ``_codecs.encode`` (torch 2.4)."""
    return text.encode('latin1')


def named_attribute(owner: type, name: str) -> Callable[..., Any]:
    """Return one of the functions that mmengine's state names, in the place of ``getattr``."""
    known: dict[tuple[type, str], Callable[..., Any]] = {
        (OneCycle, '_annealing_cos'): OneCycleParamScheduler._annealing_cos,
        (OneCycle, '_annealing_linear'): OneCycleParamScheduler._annealing_linear,
    }
    for statistic in ('min', 'max', 'current', 'mean'):
        known[LoadedHistory, statistic] = getattr(HistoryBuffer, statistic)
    if (owner, name) not in known:
        raise UnpicklingError(f'the attribute {name!r} of {owner!r} is not part of training state')
    return known[owner, name]


def _under(name: str, entry: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``entry`` the name that checkpoints use: torch looks it up by these fields."""
    entry.__module__, _, entry.__name__ = name.rpartition('.')
    entry.__qualname__ = entry.__name__
    return entry


# Entries for torch.serialization.add_safe_globals, by the name in the file.
STATE_TYPES: dict[str, Callable[..., Any]] = {
    '_codecs.encode': raw_bytes,
    'builtins.getattr': named_attribute,
    f'{ConfigDict.__module__}.ConfigDict': config_dict,
    'numpy.dtype': NumberType,
    'numpy.ndarray': LoadedArray,
    f'{HistoryBuffer.__module__}.HistoryBuffer': LoadedHistory,
    f'{OneCycleParamScheduler.__module__}.OneCycleParamScheduler': OneCycle,
    **{f'{core}.multiarray._reconstruct': partial(rebuild_array) for core in NUMPY_CORES},
    **{f'{core}.multiarray.scalar': partial(rebuild_number) for core in NUMPY_CORES},
}
for _name, _entry in STATE_TYPES.items():
    _under(_name, _entry)
