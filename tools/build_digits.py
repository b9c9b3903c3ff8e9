"""Build the embedded data set: real handwritten digits in synthetic scenes, as COCO JSON and PNG.

    python tools/build_digits.py
    python tools/build_digits.py --out data/digits --train 1000 --val 200 --seed 0 --preview

Nothing is downloaded. A data set that is already there with the same options is left as it is.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from gfl_det.datasets.digits.build import DigitsRecipe, build_digits
from gfl_det.datasets.images import write_preview
from gfl_det.errors import GFLDetError
from gfl_det.utils.console import ProgressCalls


def parse_args() -> argparse.Namespace:
    recipe = DigitsRecipe()
    parser = argparse.ArgumentParser(description='Build the data set of handwritten digits.')
    parser.add_argument('--out', type=Path, default=Path('data/digits'), help='folder to write')
    parser.add_argument('--train', type=int, default=recipe.train, help='pictures to train on')
    parser.add_argument('--val', type=int, default=recipe.val, help='pictures to evaluate on')
    parser.add_argument('--seed', type=int, default=recipe.seed, help='decides every byte')
    parser.add_argument('--force', action='store_true', help='build again even if it is there')
    parser.add_argument(
        '--preview', action='store_true', help='also write OUT/preview.png: val pictures with boxes'
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    try:
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
    except GFLDetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
