"""Command ``gfl-det digits``: build the data set of handwritten digits in synthetic scenes."""

from __future__ import annotations

import argparse
from pathlib import Path

from gfl_det.cli.arguments import add_seed, count, parsing

TRAIN, VAL = 1000, 200  # as in DigitsRecipe, whose import needs NumPy


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Build the data set of handwritten digits, as COCO JSON and PNG, from the '
        'scans that scikit-learn ships. Nothing is downloaded; an existing data set with the '
        'same options is left unchanged.',
    )
    add = parser.add_argument
    add('--out', type=Path, default=Path('data/digits'), metavar='DIR', help='folder (%(default)s)')
    for name, default, purpose in (('train', TRAIN, 'train'), ('val', VAL, 'evaluate')):
        text = f'pictures to {purpose} on ({default})'
        add(f'--{name}', type=count, default=default, metavar='N', help=text)
    add_seed(parser, 'random seed')
    parser.add_argument('--force', action='store_true', help='rebuild an existing data set')
    parser.add_argument(
        '--preview', action='store_true', help='also write DIR/preview.png: val pictures with boxes'
    )
    return parser


parse_arguments = parsing(make_parser)


def run(args: argparse.Namespace) -> None:
    """Build the data set and print a summary.

    Raises:
        GFLDetError: If the folder cannot be written, or contains something else.
    """
    from functools import partial

    from gfl_det.datasets.digits.build import DigitsRecipe, build_digits
    from gfl_det.datasets.images import write_preview
    from gfl_det.utils.console import ProgressCalls

    recipe = DigitsRecipe(train=args.train, val=args.val, seed=args.seed)
    with ProgressCalls() as told:
        told_pictures = partial(told, 'pictures')
        summary = build_digits(args.out, recipe, force=args.force, progress=told_pictures)
    verb = 'built in' if summary.built else 'already there, unchanged:'
    print(f'handwritten digits {verb} {args.out}')
    for split, images in summary.images.items():
        print(f'  {split}: {images} pictures, {summary.boxes[split]} boxes')
    if args.preview:
        write_preview(args.out, args.out / 'preview.png')
        print(f'  preview: {args.out / "preview.png"}')
