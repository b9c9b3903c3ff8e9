"""``gfl-det weights``: what can be done to files of weights.

``extract`` takes the weights out of a checkpoint of a training. A script in ``tools`` is older than
that word, and goes without it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

EXTRACT = (
    'Take the weights out of a checkpoint of a training, without optimizer and history: a quarter '
    'to a half of its size, for tests, exports and other trainings.'
)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(prog=prog, description='Work on files of weights.')
    commands = parser.add_subparsers(dest='command', required=True)
    extracting = commands.add_parser(
        'extract', help='the weights of a checkpoint of a training alone', description=EXTRACT
    )
    add_extract_arguments(extracting)
    return parser


def make_extract_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of ``extract`` alone."""
    parser = argparse.ArgumentParser(prog=prog, description=EXTRACT)
    add_extract_arguments(parser)
    return parser


def add_extract_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``extract`` takes."""
    parser.add_argument('checkpoint', help='a checkpoint, such as best_*.pth or epoch_*.pth')
    parser.add_argument('out', help='the file to write')
    parser.add_argument(
        '--kind',
        choices=['averaged', 'trained'],
        help='of a training with averaged weights (EMA): the averages, which tests of the '
        'checkpoint use (default), or the weights that the optimizer left',
    )


def parse_arguments(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Parse the command line."""
    return make_parser(prog).parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Do what the subcommand says."""
    dict(extract=extract)[args.command](args)


def extract(args: argparse.Namespace) -> None:
    """Write the weights and say what they are.

    Raises:
        CheckpointError: There are no such weights in the checkpoint, or the file cannot be written.
    """
    from gfl_det.engine.training.extract_weights import extract_weights

    meta = extract_weights(args.checkpoint, args.out, args.kind)
    print(f'{args.out}: {meta["kind"]} weights of epoch {meta["epoch"]}, iteration {meta["iter"]}')
