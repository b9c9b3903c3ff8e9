"""Measure COCO evaluation: mmdet's CocoMetric, and ours with each backend, on synthetic detections.

    python tools/benchmark_coco.py [--images N] [--detections N] [--classes N] [--seed N]

Prints processor seconds, their ratio, and the largest difference of any number. Needs the extra:
pip install gfl_det[faster]
"""

import argparse

from gfl_det.cli import run
from gfl_det.evaluation.comparison import compare
from gfl_det.evaluation.synthetic import make_set


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--images', type=int, default=5000)
    parser.add_argument('--detections', type=int, default=100, help='of each image')
    parser.add_argument('--classes', type=int, default=80)
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    found = compare(make_set(args.images, args.detections, args.classes, args.seed))
    print(f'{args.images} images, {args.detections} detections each, {args.classes} classes')
    for name, seconds in (
        ("mmdet's CocoMetric", found.mmdet),
        ('gfl_det.CocoMetric, pycocotools', found.pycocotools),
        ('gfl_det.CocoMetric, faster_coco_eval', found.faster),
    ):
        print(f'{name:38} {seconds:8.2f} s {found.mmdet / seconds:6.1f}x')
    print(f'largest difference of the two backends: {found.difference:.1e}')
    print(f'the same numbers from all three: {"yes" if found.agrees else "no"}')


if __name__ == '__main__':
    run(main)
