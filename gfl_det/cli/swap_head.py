"""Command ``gfl-det swap-head``: replace the head of a config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import count, parsing
from gfl_det.errors import ConfigError
from gfl_det.utils.choices import SWAP_HEADS

if TYPE_CHECKING:
    from gfl_det.swap.swap import Swap


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog, description='Put a GFL head into the config of a detector.'
    )
    parser.add_argument(
        'config',
        metavar='CONFIG',
        help='a file, the name of a shipped config, or mmdet::FOLDER/NAME.py',
    )
    parser.add_argument('--head', choices=SWAP_HEADS, default='GFLHead', help='the new head')
    parser.add_argument(
        '--target',
        choices=['bbox_head', 'rpn_head'],
        help='head to replace; rpn_head is the proposal head of a two-stage detector',
    )
    parser.add_argument('--num-classes', type=count, metavar='N', help='new number of classes')
    parser.add_argument('--out', type=Path, metavar='FILE', help='the new config')
    parser.add_argument(
        '--weights', metavar='CHECKPOINT', help='copy the matching weights of a trained detector'
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='build the result, train one step and predict once, on noise',
    )
    return parser


parse_arguments = parsing(make_parser)


def run(args: argparse.Namespace) -> None:
    """Swap the head of a config, write the config, and print the changes.

    Raises:
        GFLDetError: See :func:`gfl_det.swap_head`, :func:`.check.check_config`.
    """
    from mmengine.config import Config

    from gfl_det.swap.swap import swap_head
    from gfl_det.utils.config import CONFIG_ENDINGS, load_config

    out = args.out or Path(f'{Path(args.config).stem}_{args.head.lower()}.py')
    if out.suffix not in CONFIG_ENDINGS:
        raise ConfigError(f'--out {out} must end in one of {", ".join(CONFIG_ENDINGS)}.')
    if out.exists() and Path(args.config).exists() and out.samefile(args.config):
        raise ConfigError(f'--out {out} is the config that is read: choose another name.')
    for path in (out, *([out.with_suffix('.pth')] if args.weights else [])):
        if path.exists():
            raise ConfigError(f'{path} exists, and nothing is overwritten: name another --out.')
    cfg = load_config(args.config)
    swap = swap_head(cfg, args.head, target=args.target, num_classes=args.num_classes)
    print(swap.report)
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.weights:
        _carry_over(swap, args.weights, out.with_suffix('.pth'))
    swap.config.dump(out)
    if Config.fromfile(out).to_dict() != swap.config.to_dict():
        raise ConfigError(
            f'{out} does not read back as it was written: report the config it is of.'
        )
    print(f'config: {out}')
    if args.check:
        _check(swap)


def _carry_over(swap: Swap, checkpoint: str, path: Path) -> None:
    from gfl_det.swap.swap import carry_over, save_weights

    transfer = carry_over(swap, checkpoint)
    save_weights(transfer, str(path))
    swap.config.load_from = str(path)
    print(transfer.report)
    print(f'weights: {path} (load_from of the config)')


def _check(swap: Swap) -> None:
    from gfl_det.swap.swap import check_config

    outcome = check_config(swap.config, swap.pyramid.side)
    losses = ', '.join(f'{name} {value:.4f}' for name, value in outcome.losses.items())
    print(f'one training step: {losses}')
    print(
        f'one prediction: {outcome.detections} boxes; {outcome.parameters / 1e6:.1f} M parameters'
    )
