"""Command ``gfl-det weights``: extract and convert weight files.

``extract`` extracts the weights from a training checkpoint; an older script in ``tools`` does the
same without the subcommand. ``convert`` makes a checkpoint for this package from published weights
of NanoDet-Plus, either an ncnn pair or a checkpoint of the authors' trainer.
"""

from __future__ import annotations

import argparse

from gfl_det.cli.arguments import parsing
from gfl_det.utils.files import check_writable

EXTRACT = (
    'Extract the weights from a training checkpoint, without optimizer and history: a quarter to '
    'a half of its size, for tests, exports and other trainings.'
)

CONVERT = (
    'Convert published weights of NanoDet-Plus (NAME.param and NAME.bin of ncnn, or NAME.ckpt of '
    "the authors' trainer) to a checkpoint that contains its config and class names."
)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(prog=prog, description='Extract or convert weights.')
    commands = parser.add_subparsers(dest='command', required=True)
    extracting = commands.add_parser(
        'extract', help='extract the weights from a training checkpoint', description=EXTRACT
    )
    add_extract_arguments(extracting)
    converting = commands.add_parser(
        'convert',
        help='convert published weights of NanoDet-Plus to a checkpoint',
        description=CONVERT,
    )
    add_convert_arguments(converting)
    return parser


def make_extract_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of ``extract`` alone."""
    parser = argparse.ArgumentParser(prog=prog, description=EXTRACT)
    add_extract_arguments(parser)
    return parser


def add_extract_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``extract``."""
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='a file, such as best_*.pth or epoch_*.pth'
    )
    parser.add_argument('out', metavar='OUT', help='file to write, .pth')
    parser.add_argument(
        '--kind',
        choices=['averaged', 'trained'],
        help='for a training with averaged weights (EMA): the averages, which are also tested '
        '(default), or the weights of the optimizer',
    )


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``convert``."""
    parser.add_argument(
        'files', nargs='+', metavar='FILE', help='NAME.param NAME.bin, or NAME.ckpt or NAME.pth'
    )
    parser.add_argument('--out', required=True, metavar='FILE', help='the checkpoint to write')
    parser.add_argument(
        '--config',
        metavar='CONFIG',
        help='config of the network, a file or the name of a shipped config; default: the one that '
        'the name of the first file begins with',
    )


parse_arguments = parsing(make_parser)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    dict(extract=extract, convert=convert)[args.command](args)


def extract(args: argparse.Namespace) -> None:
    """Write the weights and print a summary.

    Raises:
        CheckpointError: If there are no such weights in the checkpoint, or the file cannot be
            written.
    """
    from gfl_det.engine.training.checkpoints import extract_weights

    check_writable(args.out, [args.checkpoint])
    meta = extract_weights(args.checkpoint, args.out, args.kind)
    when = '' if meta['epoch'] is None else f' of epoch {meta["epoch"]}, iteration {meta["iter"]}'
    print(f'{args.out}: {meta["kind"]} weights{when}')


def convert(args: argparse.Namespace) -> None:
    """Write the checkpoint and print a summary.

    Raises:
        CheckpointError: If a file is missing, damaged, or belongs to another network than the
            config.
        ConfigError: If no config was given and none matches the file name.
    """
    from gfl_det.inference.foreign_weights import convert as convert_weights

    check_writable(args.out, args.files)
    found = convert_weights(args.files, args.out, args.config)
    print(f'{args.out}: {found.kind} weights of {found.config}, {found.classes} classes')
