"""Entry point of ``gfl-det NAME`` and ``python -m gfl_det NAME``, with the list of commands.

Each command is a module that builds its parser without torch and mmdet, so help, completion and
usage errors are immediate; modules are registered and the work starts only after parsing. A failure
is one sentence instead of a traceback, and exit status 1.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from gfl_det.errors import GFLDetError
from gfl_det.version import __version__

PROGRAM = 'gfl-det'
SHELLS = ('bash', 'zsh', 'tcsh')  # supported by shtab


class Command(NamedTuple):
    """Command: a module of this package with ``make_parser``, ``parse_arguments`` and ``run``."""

    module: str
    summary: str
    registers: bool = True  # False for commands that must run without mmdet


GROUPS: dict[str, dict[str, Command]] = {
    'Data': {
        'check': Command('check_dataset', 'check the data of a config, or an annotation file'),
        'suggest-reg-max': Command(
            'suggest_reg_max', 'suggest reg_max, strides and anchor scale for your boxes'
        ),
        'find-label-errors': Command(
            'find_label_errors', 'rank labels that are probably wrong, and review them'
        ),
        'what-to-label': Command(
            'what_to_label', 'rank unlabelled pictures by what labels would teach (experimental)'
        ),
        'digits': Command('digits', 'build the embedded data set of handwritten digits'),
    },
    'Training': {
        'sanity': Command('sanity', 'overfit a few images: does this config learn at all?'),
        'train': Command('train', 'train a detector'),
        'test': Command('test', 'test a detector: the COCO table, detections, pictures'),
        'replay': Command('replay', 'repeat a step whose loss or gradient was not finite'),
        'weights': Command('weights', 'extract the weights of a training, convert published ones'),
        'swap-head': Command('swap_head', "put a GFL head into another detector's config"),
    },
    'Trained detectors': {
        'models': Command('models', 'list detectors whose weights are available by name', False),
        'infer': Command('infer', 'detect in images, folders, videos and URLs'),
        'infer-many': Command(
            'infer_many', 'detect in millions of images, on one machine or a Ray cluster'
        ),
        'show': Command('show', 'draw detections with soft edges, and charts of their edges'),
        'report': Command('report', 'write one page about a detector'),
        'compare': Command('compare', 'is one detector better than another, or is it noise?'),
        'demo': Command('demo', 'serve a page to drop images on'),
        'export': Command('export', 'export to ONNX or OpenVINO, and check the file'),
    },
    'Calibration': {
        'calibrate': Command('calibrate', 'fit, apply and evaluate calibrators of scores'),
        'operate': Command(
            'operate', 'choose score thresholds with a guaranteed precision, recall ...'
        ),
        'intervals': Command('intervals', 'fit and evaluate calibrators of edge intervals'),
    },
    'Installation': {
        'doctor': Command(
            'doctor.__main__', 'check the installation, and name the cure of each problem', False
        ),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Raises:
        SystemExit: If the command ends with a status: 0 for success, 1 for a failure, 2 for a usage
            error, 130 for an interrupt (Ctrl-C), or the status that it returns.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(words)
        sys.stdout.flush()
    except BrokenPipeError:  # as with `| head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ('-h', '--help', 'help'):
        print(overview())
    elif words[0] == '--version':
        print(f'gfl_det {__version__}')
    elif words[0] == '--print-completion':
        run(lambda: print(completion(words[1:])))
    elif words[0] not in COMMANDS:
        nearest = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.5)
        hint = f'did you mean `{PROGRAM} {nearest[0]}`?' if nearest else f'`{PROGRAM}` lists them.'
        print(f'error: There is no command {words[0]!r}: {hint}', file=sys.stderr)
        raise SystemExit(2)
    else:
        name, *rest = words
        args = _module(name).parse_arguments(rest, prog=f'{PROGRAM} {name}')
        run(lambda: _work(name, args))


def overview() -> str:
    """List the commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f'usage: {PROGRAM} COMMAND ...', '', 'Generalized Focal Loss for MMDetection.']
    for title, group in GROUPS.items():
        lines += ['', f'{title}:']
        lines += [f'  {name:{width}}  {command.summary}' for name, command in group.items()]
    lines += [
        '',
        f'{PROGRAM} COMMAND --help says what a command takes, {PROGRAM} --version which version',
        f'this is; {PROGRAM} --print-completion {"|".join(SHELLS)} writes a completion script.',
    ]
    return '\n'.join(lines)


def completion(words: Sequence[str]) -> str:
    """Script for shell completion of commands and options.

    shtab generates it once from the parsers; argcomplete would start Python at each press of Tab
    and slow down the start of every command.
    """
    import shtab

    parser = argparse.ArgumentParser(prog=f'{PROGRAM} --print-completion')
    parser.add_argument('shell', choices=SHELLS)
    shell = parser.parse_args(words).shell
    return str(shtab.complete(whole_parser(), shell))


def whole_parser() -> argparse.ArgumentParser:
    """Parser with all commands, for completion."""
    parser = argparse.ArgumentParser(prog=PROGRAM)
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(dest='name', metavar='COMMAND')
    for name, command in COMMANDS.items():
        part = _module(name).make_parser(f'{PROGRAM} {name}')
        commands.add_parser(name, parents=[part], help=command.summary, conflict_handler='resolve')
    return parser


def _module(name: str) -> ModuleType:
    return import_module(f'gfl_det.cli.{COMMANDS[name].module}')


def _work(name: str, args: argparse.Namespace) -> None:
    if COMMANDS[name].registers:
        import gfl_det

        gfl_det.register()
    status = _module(name).run(args)
    if status:
        raise SystemExit(status)


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
