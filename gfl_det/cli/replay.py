"""Command ``gfl-det replay``: repeat a saved training step."""

from __future__ import annotations

import argparse

from gfl_det.cli.arguments import parsing


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Repeat a training step that the loss guard has saved, and print its losses, '
        'the first module with infinite or NaN outputs, and the gradients. Exit status 0 if the '
        'losses are equal, else 3.',
    )
    parser.add_argument(
        'dump', metavar='FILE', help='a file in the folder non_finite of a work dir'
    )
    parser.add_argument(
        '--config',
        metavar='CONFIG',
        help='config of the training (default: the copy in the work dir). A config is a program: '
        'use only those you trust',
    )
    parser.add_argument(
        '--device', default='cpu', metavar='NAME', help='cpu, cuda, cuda:1 ... (%(default)s)'
    )
    return parser


parse_arguments = parsing(make_parser)


def run(args: argparse.Namespace) -> int:
    """Repeat a step, print the findings, and return the exit status."""
    from gfl_det.engine.training.replay import find_config, read_dump, replay, report, same_losses
    from gfl_det.utils.config import load_config

    dump = read_dump(args.dump)
    name = args.config or find_config(args.dump, dump.record)
    result = replay(dump, load_config(name), args.device)
    print(f'{args.dump}: {dump.record["reason"]}, with {name}')
    print('\n'.join(report(dump, result)))
    return 0 if same_losses(dump, result) else 3
