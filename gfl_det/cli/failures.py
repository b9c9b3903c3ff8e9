"""Failures of commands: one sentence for the user in place of a traceback, and exit status 1."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence

from gfl_det.errors import GFLDetError

# A disk without room, a quota used up, what is only to be read, or no place for a file, or no file.
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
# How the back ends of torch.distributed say that another process is gone, or does not answer.
LOST_PROCESS = re.compile(
    r'Connection closed by peer|Connection reset by peer|Timed out waiting|Broken pipe|'
    r'[Ww]atchdog caught collective operation timeout|Connection refused|'
    r'NCCL communicator was abort'
)
LOST_SENTENCE = (
    'another process of this run has ended or does not answer ({}): see what it said, then go on '
    'with --resume.'
)
# What torch says where weights are loaded strictly; averages (EMA) are.
MISFIT = 'Error(s) in loading state_dict'
MISFIT_SENTENCE = 'The checkpoint is of another model than the config'
# How torch reports an exception from a worker of a data loader.
WORKER_TRACEBACK = re.compile(r'\ACaught \w+ in .*?Original Traceback.*\n[\w.]+: (.*)\Z', re.DOTALL)


def run(main: Callable[[], object]) -> None:
    """Run a command; print an error that is meant for the user without traceback, exit with 1."""
    # mmengine needs the package of this notice, and requirements.txt pins it for that.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    try:
        main()
    except Exception as error:
        message = sentence_of(error)
        if message is None:  # a fault of ours, or of a library's: the traceback says where
            raise
        print(_with_rank(message), file=sys.stderr)
        raise SystemExit(1) from None


def sentence_of(error: Exception) -> str | None:
    """Say in a sentence what went wrong; None for what is not known."""
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
    """Print lines, in the first of several processes."""
    if lines and not _rank():
        print('\n'.join(lines), flush=True)


def _with_rank(message: str) -> str:
    """Put ``error:`` in front; of several processes the first tells all, the others their part."""
    from gfl_det.utils.console import printable  # loads rich, which is used in failure alone here

    rank, message = _rank(), printable(message)
    return f'error: {message}' if not rank else f'error (process {rank}): {message.splitlines()[0]}'


def _known_failure(message: str) -> str | None:
    """Say in a sentence what libraries say in a page; None for what is not known."""
    if LOST_PROCESS.search(message):
        return LOST_SENTENCE.format(message.splitlines()[0])
    if message.startswith(MISFIT) and '\n' in message:
        first = message.splitlines()[1].strip().rstrip('.')
        return f'{MISFIT_SENTENCE} ({first}): give the config that it was trained with.'
    return None


def _without_worker(message: str) -> str:
    """Return the message; of an error that a worker process passed on, only what it said."""
    passed_on = WORKER_TRACEBACK.match(message.strip())
    return passed_on.group(1) if passed_on else message


def _rank() -> int:
    return int(os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or 0)
