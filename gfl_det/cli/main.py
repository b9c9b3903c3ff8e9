"""Command lines of the tools: arguments, the config behind a name, errors in one sentence."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import DictAction
from mmengine.dist import get_world_size, is_main_process

from gfl_det.engine import config_edits
from gfl_det.engine.config_edits import GUARDS
from gfl_det.errors import GFLDetError
from gfl_det.inference.optimize import DTYPES
from gfl_det.utils.building import FAULTS, building_fault
from gfl_det.utils.console import printable

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


class KeyValueAction(DictAction):
    """mmengine's ``KEY=VALUE ...``, with a usage error where a word has no ``=``."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        for word in values:
            if '=' not in word:
                parser.error(f'{option_string}: {word!r} is not of the form KEY=VALUE')
        super().__call__(parser, namespace, values, option_string)


def add_cfg_options(
    parser: argparse._ActionsContainer,
    text: str = 'override values of the config, as in data_root=DIR',
) -> None:
    """Add ``--cfg-options`` to a parser, or to a group of one."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE', help=text
    )


def parse_train_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of ``tools/train.py``."""
    parser = _parser('Train a detector.')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint, without a name from the newest good one in the work dir',
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 without'
    )
    parser.add_argument(
        '--channels-last',
        action='store_true',
        help='lay maps out with channels last, which most convolutions are faster in',
    )
    _add_scaling(parser)
    parser.add_argument(
        '--loss-guard',
        choices=GUARDS,
        default=GUARDS[0],
        help='at a loss or gradient that is infinite or NaN: stop (default), or skip the step; '
        'either writes a file for tools/replay.py',
    )
    parser.add_argument(
        '--from-scratch',
        action='store_true',
        help='random weights: no download, no frozen layers, a longer schedule needed',
    )
    parser.add_argument(
        '--pictures',
        nargs='?',
        type=int,
        const=8,
        metavar='N',
        help='draw the same N validation images after each validation, without a number 8',
    )
    parser.add_argument(
        '--log-to',
        nargs='+',
        choices=list(config_edits.BACKENDS),
        default=[],
        help='send losses, metrics and pictures there too',
    )
    return _parse(parser, argv)


def parse_test_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of ``tools/test.py``."""
    parser = _parser('Test a detector: print the COCO table, write detections and pictures.')
    parser.add_argument('checkpoint', help='weights: a file or an address')
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='draw every tested image into this folder: truth beside prediction, soft edges',
    )
    parser.add_argument(
        '--out', metavar='FILE', help='write detections: .pkl (samples) or .json (COCO results)'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument(
        '--optimize',
        nargs='?',
        const='float32',
        choices=DTYPES,
        help='test as optimize_for_inference makes it; without a name in float32',
    )
    parser.add_argument('--classwise', action='store_true', help='print the AP of each class too')
    return _parse(parser, argv)


def tell(lines: Sequence[str]) -> None:
    """Print lines, in the first of several processes."""
    if lines and not _rank():
        print('\n'.join(lines), flush=True)


def tell_outputs(out: str | None, show_dir: str | None) -> None:
    """Say where a test run has put detections and pictures."""
    if not is_main_process():
        return
    if out:
        config_edits.settle_results(out)
        print(f'detections: {out}')
    if show_dir:
        number = sum(path.is_file() for path in Path(show_dir).iterdir())
        share = ', of the images of the first process' if get_world_size() > 1 else ''
        print(f'pictures: {show_dir} ({number} files{share})')


def run(main: Callable[[], None]) -> None:
    """Run a tool; print an error that is meant for the user without its traceback, exit with 1."""
    # mmengine needs the package of this notice, and requirements.txt pins it for that.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    try:
        main()
    except GFLDetError as error:
        print(_report(_sentence(error)), file=sys.stderr)
        raise SystemExit(1) from None
    except RuntimeError as error:
        sentence = _known_failure(str(error))
        if sentence is None:
            raise
        print(_report(sentence), file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = error.filename or 'a file'
        print(_report(f'{where} cannot be used: {error.strerror}.'), file=sys.stderr)
        raise SystemExit(1) from None
    except FAULTS as error:
        sentence = building_fault(error)
        if sentence is None:
            raise
        print(_report(sentence), file=sys.stderr)
        raise SystemExit(1) from None


def _report(message: str) -> str:
    """Put ``error:`` in front; of several processes the first tells all, the others their part."""
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


def _rank() -> int:
    return int(os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or 0)


def _sentence(error: GFLDetError) -> str:
    """Return the message; of an error that a worker process passed on, only what it said."""
    message = str(error)
    passed_on = WORKER_TRACEBACK.match(message.strip())
    return passed_on.group(1) if passed_on else message


def _add_scaling(parser: argparse.ArgumentParser) -> None:
    scaling = parser.add_mutually_exclusive_group()
    scaling.add_argument(
        '--no-scale-lr',
        dest='scale_lr',
        action='store_false',
        help='keep the learning rate of the config, which is scaled by default with the number of '
        'images an update sees over the number it was set for',
    )
    scaling.add_argument(
        '--auto-scale-lr', dest='scale_lr', action='store_true', help='what is done by default'
    )


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='a config file, or the name of a shipped config')
    parser.add_argument('--work-dir', metavar='DIR', help='folder for logs and checkpoints')
    add_cfg_options(
        parser,
        'override values of the config, as in data_root=DIR train_dataloader.batch_size=4',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # torch.distributed.launch passes the number of the process, torchrun sets the variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(arguments.local_rank))
    return arguments
