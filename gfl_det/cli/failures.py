"""Failure handling of commands: one sentence instead of a traceback, and exit status 1."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence

from gfl_det.errors import GFLDetError

# Full disk, exhausted quota, no permission to write, wrong kind of file, or missing folder.
UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOENT,
)
# Messages of torch.distributed's backends when another process is gone or does not respond.
LOST_PROCESS = re.compile(
    r'Connection closed by peer|Connection reset by peer|Timed out waiting|Broken pipe|'
    r'[Ww]atchdog caught collective operation timeout|Connection refused|'
    r'NCCL communicator was abort'
)
LOST_SENTENCE = (
    'another process of this run has ended or does not answer ({}): see what it said, then go on '
    'with --resume.'
)
# torch's message when weights are loaded strictly, as averaged (EMA) weights are.
MISFIT = 'Error(s) in loading state_dict'
MISFIT_SENTENCE = 'The checkpoint is of another model than the config'
# torch's report of an exception in a data loader worker.
WORKER_TRACEBACK = re.compile(r'\ACaught \w+ in .*?Original Traceback.*\n[\w.]+: (.*)\Z', re.DOTALL)


def run(main: Callable[[], object]) -> None:
    """Run a command; print errors meant for the user without a traceback and exit with 1."""
    # mmengine needs the deprecated package; requirements.txt pins it for this reason.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    # mmengine's warning about boxes that reach over the border, which are drawn nevertheless.
    warnings.filterwarnings('ignore', message=r'Warning: The (bbox|polygon) is out of bounds')
    try:
        main()
    except Exception as error:
        message = sentence_of(error)
        if message is None:  # a bug here or in a library: show the traceback
            raise
        print(_with_rank(message), file=sys.stderr)
        raise SystemExit(1) from None


def sentence_of(error: Exception) -> str | None:
    """Message of an error in one sentence; None for unknown errors."""
    if isinstance(error, GFLDetError):
        return _without_worker(str(error))
    if isinstance(error, RuntimeError):
        return _known_failure(str(error))
    if isinstance(error, OSError):
        if error.errno not in UNWRITABLE:
            return None
        return f'{error.filename or "a file"} cannot be used: {error.strerror}.'
    from gfl_det.utils.faults import FAULTS, building_fault

    return building_fault(error) if isinstance(error, FAULTS) else None


def tell(lines: Sequence[str]) -> None:
    """Print lines, only in the first of several processes."""
    if lines and not _rank():
        print('\n'.join(lines), flush=True)


def _with_rank(message: str) -> str:
    """Prefix with ``error:``; processes other than the first add their rank and keep one line."""
    from gfl_det.utils.console import printable  # loads rich, needed only for failures here

    rank, message = _rank(), printable(message)
    return f'error: {message}' if not rank else f'error (process {rank}): {message.splitlines()[0]}'


def _known_failure(message: str) -> str | None:
    """Condense a known long library message to one sentence; None for unknown messages."""
    if LOST_PROCESS.search(message):
        return LOST_SENTENCE.format(message.splitlines()[0])
    if message.startswith(MISFIT) and '\n' in message:
        first = message.splitlines()[1].strip().rstrip('.')
        return f'{MISFIT_SENTENCE} ({first}): give the config that it was trained with.'
    return None


def _without_worker(message: str) -> str:
    """Return the message; for an error from a worker process, without the worker's traceback."""
    passed_on = WORKER_TRACEBACK.match(message.strip())
    return passed_on.group(1) if passed_on else message


def _rank() -> int:
    return int(os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or 0)
