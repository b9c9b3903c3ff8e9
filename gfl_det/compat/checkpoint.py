"""Checkpoints and YAML files, read as data without running anything in them.

``torch.load(weights_only=True)`` calls allow-listed types with arbitrary arguments from the file.
The types that mmengine writes beside tensors are therefore unsafe to allow: ``numpy.ndarray`` makes
object arrays from raw bytes (wild pointers), the state of a ``numpy.dtype`` can set its memory
flags, and mmengine's ``HistoryBuffer`` needs ``getattr`` and overwrites methods of its class. Each
entry here replaces a type under the name that checkpoints use, and only builds plain numbers,
arrays and histories.
"""

from __future__ import annotations

import os
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pickle import UnpicklingError
from typing import Any, Union

import numpy as np
import torch
import yaml
from mmengine.config import ConfigDict
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import YamlHandler
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

from gfl_det.errors import CheckpointError

NUMBERS = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')
NUMPY_CORES = ('numpy._core', 'numpy.core')  # module names in files of numpy 2 and numpy 1
MapLocation = Union[str, torch.device, dict[str, str], Callable[..., Any], None]

# Before 2.4, torch has no allow-list: weights load, training state is rejected.
HAS_ALLOW_LIST = hasattr(torch.serialization, 'add_safe_globals')
REFUSED_GLOBAL = re.compile(r'(?:GLOBAL|Unsupported class) ([\w.]+)')
TORCH_BEGINNINGS = (b'PK', b'\x80')  # a zip archive, a pickle
SIZED_BYTES = 'builtins.bytearray'  # called with a number, it allocates that much memory
MAX_UNFOLDING = 4  # multiple of an archive's size
SMALL = 2**26  # bytes that any archive may decompress to
UNPICKLER_REASON = re.compile(r'WeightsUnpickler error:\s*(.+)')


class NumberType:
    """A number type under construction; replaces ``numpy.dtype``."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code not in NUMBERS:
            raise UnpicklingError(f'numpy arrays of type {code!r} are not supported')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ('<', '>'):  # only the byte order of the state matters for numbers
            self.dtype = self.dtype.newbyteorder(state[1])


class LoadedArray(np.ndarray):
    """A numpy array from a checkpoint; pickles as a plain array again."""

    def __new__(cls) -> LoadedArray:
        """Create an empty array, which a file fills by its state; it cannot pass a buffer."""
        return super().__new__(cls, (0,))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, number, fortran, data = state
        if not isinstance(number, NumberType) or not isinstance(data, bytes):
            raise UnpicklingError('numpy arrays that do not hold numbers are not supported')
        super().__setstate__((version, shape, number.dtype, fortran, data))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)


class LoadedHistory(HistoryBuffer):
    """A ``HistoryBuffer`` from a checkpoint, converted to a real one when its state is set."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        logs, counts = state['_log_history'], state['_count_history']
        if not isinstance(logs, np.ndarray) or not isinstance(counts, np.ndarray):
            raise UnpicklingError('the history of a logged value is not an array')
        self.max_length = int(state['max_length'])
        self._log_history = logs.view(np.ndarray)
        self._count_history = counts.view(np.ndarray)
        self._set_default_statistics()  # ignores the file's own table of methods
        self.__class__ = HistoryBuffer


class OneCycle:
    """Replacement for the class of one-cycle schedules, whose state names a function of it."""


def rebuild_array(cls: type, shape: tuple[int, ...], code: bytes) -> LoadedArray:
    """Create an array like ``numpy._core.multiarray._reconstruct``; its state follows."""
    return LoadedArray()


def rebuild_number(number: NumberType, data: bytes) -> np.generic:
    """Create a numpy number from bytes like ``numpy._core.multiarray.scalar``."""
    if not isinstance(number, NumberType) or len(data) != number.dtype.itemsize:
        raise UnpicklingError('a numpy number has the wrong type or length')
    return np.frombuffer(data, number.dtype)[0]


def config_dict(items: dict[str, Any]) -> ConfigDict:
    """Create a ``ConfigDict``, the saved form of dicts inside a data set's ``metainfo``."""
    if type(items) is not dict:
        raise UnpicklingError('a ConfigDict is not built from a dict')
    return ConfigDict(items)


def raw_bytes(text: str, encoding: str) -> bytes:
    """Decode bytes that pickle wrote as text; replaces ``_codecs.encode`` (torch 2.4)."""
    return text.encode('latin1')


def named_attribute(owner: type, name: str) -> Callable[..., Any]:
    """Return a function named in mmengine's state; replaces ``getattr``."""
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
    """Give ``entry`` the name that checkpoints use, by which torch looks it up."""
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


def install() -> None:
    """Allow mmengine's training state in ``torch.load``, and load local files with this module."""
    if HAS_ALLOW_LIST:
        torch.serialization.add_safe_globals(list(STATE_TYPES.values()))
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    register_handler(['yaml', 'yml'])(PlainYamlHandler)


def load_from_local(filename: str, map_location: MapLocation = None) -> dict[str, Any]:
    """Load a local checkpoint file for mmengine, which logs this function's name.

    Args:
        filename: Path; ``~`` stands for the home folder.
        map_location: As in ``torch.load``.

    Raises:
        CheckpointError: As in :func:`load_file`.
    """
    return load_file(os.path.expanduser(filename), map_location)


def load_file(path: str, map_location: MapLocation = None, mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint with ``weights_only=True``: tensors, plain values, mmengine's state.

    Args:
        path: Path of the file.
        map_location: As in ``torch.load``.
        mmap: Read tensors on first use, which is fast for inspecting other content.

    Raises:
        CheckpointError: If the file is missing, damaged, no checkpoint, or holds anything else,
            such as a pickled function, which is never run.
    """
    if not os.path.isfile(path):
        kind = 'is a folder: name a file in it' if os.path.isdir(path) else 'does not exist'
        raise CheckpointError(f'The checkpoint {path} {kind}.')
    if not os.access(path, os.R_OK):
        raise CheckpointError(f'The checkpoint {path} is not readable: change its permissions.')
    if tarfile.is_tarfile(path):  # torch before 2.6 always runs code from these
        raise CheckpointError(
            f'The checkpoint {path} is in the tar format of torch 0.1, which cannot be loaded '
            'safely: load it in a trusted environment and write it again with torch.save.'
        )
    _refuse_bomb(path)
    try:
        with _state_types_alone(), _no_sized_bytes(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the error suffices, and success needs no warning
            checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except torch.cuda.OutOfMemoryError:
        raise
    except MemoryError as error:
        raise CheckpointError(
            f'The file {path} ({os.path.getsize(path)} bytes) needs more memory than available: '
            'it is damaged, or this machine is too small for it.'
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, RuntimeError) and 'CUDA' in str(error):  # not caused by the file
            raise
        raise CheckpointError(_what_is_wrong(path, error)) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'The file {path} holds a {type(checkpoint).__name__}, not a checkpoint: '
            'a dict with "state_dict", or a state dict itself, is needed.'
        )
    return checkpoint


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip archive with a directory of its parts, as torch writes."""
    try:
        return zipfile.is_zipfile(path)
    except Exception:  # zipfile raises errors on some damaged ends
        return False


def _refuse_bomb(path: str) -> None:
    """Reject an archive that declares a far larger decompressed size; torch never compresses.

    Raises:
        CheckpointError: If the declared size is too large.
    """
    if not is_archive(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(member.file_size for member in archive.infolist())
    except Exception:  # truncated; torch's error says more
        return
    size = os.path.getsize(path)
    if unfolded > MAX_UNFOLDING * size + SMALL:
        raise CheckpointError(
            f'The checkpoint {path} of {size:,} bytes declares {unfolded:,} unpacked bytes: it is '
            'rejected unread; write it again with torch.save, which does not compress.'
        )


def _what_is_wrong(path: str, error: Exception) -> str:
    message = str(error)
    refused = REFUSED_GLOBAL.search(message)
    if refused and refused[1] in STATE_TYPES and not HAS_ALLOW_LIST:
        return (
            f'The checkpoint {path} holds training state ({refused[1]}), which torch '
            f'{torch.__version__} cannot load safely: upgrade to torch>=2.4, or use a checkpoint '
            'of weights alone.'
        )
    if refused:
        return (
            f'The checkpoint {path} is refused: it holds {refused[1]}, which is neither weights '
            'nor training state of mmengine and could run code when loaded; use a checkpoint of '
            'only tensors, numbers and text.'
        )
    return (
        f'The file {path} ({os.path.getsize(path)} bytes) cannot be loaded '
        f'({_reason(path, message) or type(error).__name__}): '
        'it is damaged, incomplete or no checkpoint; write or download it again.'
    )


def _reason(path: str, message: str) -> str:
    with open(path, 'rb') as file:
        beginning = file.read(20)
    if not beginning.startswith(TORCH_BEGINNINGS):
        return f'it begins with {beginning!r}' if beginning else 'it is empty'
    found = UNPICKLER_REASON.search(message)
    first_line = found[1] if found else message.partition('\n')[0]
    return first_line.partition('. ')[0].rstrip('.')


@contextmanager
def _state_types_alone() -> Iterator[None]:
    """Allow only our entries: torch picks any entry of the same name."""
    if not HAS_ALLOW_LIST:
        yield
        return
    before = list(torch.serialization.get_safe_globals())
    others = [entry for entry in before if _name_of(entry) not in STATE_TYPES]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*others, *STATE_TYPES.values()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@contextmanager
def _no_sized_bytes() -> Iterator[None]:
    """Remove ``bytearray`` from torch's own list: sixty bytes of pickle could fill all memory."""
    try:
        from torch._weights_only_unpickler import _get_allowed_globals
    except ImportError:  # another version of torch
        yield
        return
    allowed = _get_allowed_globals()
    entry = allowed.pop(SIZED_BYTES, None)
    try:
        yield
    finally:
        if entry is not None:
            allowed[SIZED_BYTES] = entry


def _name_of(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'


SafeLoader: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)  # the C version if available


class PlainLoader(SafeLoader):
    """YAML loader for plain values and the tuples that mmengine writes.

    mmengine's own loader calls anything named by a tag in the file.
    """


def _tuple(loader: Any, node: Any) -> tuple:
    return tuple(loader.construct_sequence(node, deep=True))


PlainLoader.add_constructor('tag:yaml.org,2002:python/tuple', _tuple)


class PlainYamlHandler(YamlHandler):
    """YAML handler that uses :class:`PlainLoader`, which rejects other tags."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        """Read a file; ``Loader`` selects another loader, as in ``yaml.load``."""
        kwargs.setdefault('Loader', PlainLoader)
        return super().load_from_fileobj(file, **kwargs)
