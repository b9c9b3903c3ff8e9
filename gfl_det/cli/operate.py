"""Command ``gfl-det operate``: score thresholds per class with a guaranteed rate."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import add_calibrator, amount, count, parsing, share
from gfl_det.cli.calibrate import (
    add_data_arguments,
    add_detector_arguments,
    calibrated_data,
    read_data,
)
from gfl_det.errors import DataError
from gfl_det.utils.files import check_writable

if TYPE_CHECKING:
    from gfl_det.calibration.operating_point import ClassCut, Goal, OperatingPoint, Promise

EPILOG = """\
The images must be held out: neither the detector nor the calibrator may have been fitted on them.
The promise holds for future images from the same distribution. The confidence is the probability,
over the choice of the held-out images, that the cuts keep the promise.
"""
PROMISES = {
    'precision': 'a precision of at least {:g}',
    'recall': 'a recall of at least {:g}',
    'false_alarms': 'at most {:g} false alarms per image',
}


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Choose score thresholds (cuts) per class that keep a promise.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('cuts', metavar='CUTS', help='file to write, .json')
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument('--precision', type=_inner_share, metavar='P', help='minimum precision')
    goal.add_argument('--recall', type=_inner_share, metavar='R', help='minimum recall')
    goal.add_argument(
        '--false-alarms-per-image',
        type=amount,
        metavar='N',
        help='maximum mean number of false positives',
    )
    add(
        '--confidence',
        type=_inner_share,
        default=0.9,
        metavar='C',
        help='confidence per class (0.9)',
    )
    add('--jointly', action='store_true', help='confidence for all classes at once')
    add('--iou', type=_inner_share, default=0.5, metavar='T', help='IoU of a correct box (0.5)')
    add(
        '--most',
        type=count,
        metavar='N',
        help='maximum mistakes per image, such as max_per_img: exact, but needs more images; '
        'default: one more than the worst image has',
    )
    add_data_arguments(parser)
    add_detector_arguments(parser, 'val')
    add_calibrator(parser)
    add(
        '--score-type',
        metavar='HEAD',
        help="head that gave the scores; default: the config's, or GFLHead for --results",
    )
    return parser


parse_arguments = parsing(make_parser)


def _inner_share(text: str) -> float:
    value = share(text)
    if value in (0, 1):
        raise argparse.ArgumentTypeError(f'a share between 0 and 1 is needed, not {text}')
    return value


def run(args: argparse.Namespace) -> None:
    """Choose score thresholds, and print and write them.

    Raises:
        GFLDetError: If the data cannot be used, or no class has a threshold with the guarantee.
    """
    from gfl_det.calibration.files import file_digest, save_operating_point
    from gfl_det.calibration.operating_point import Promise, choose_cuts

    _check_out(args)
    goal, target = _goal(args)
    promise = Promise(goal, target, args.confidence, args.iou, args.jointly, args.most)
    if args.calibrator:
        calibrator, gts, detections, scores = calibrated_data(args)
        detections = detections._replace(scores=scores)
        digest, head = file_digest(args.calibrator), calibrator.score_type
    else:
        (gts, detections), head = read_data(args)
        digest = None
    point = choose_cuts(detections, gts, promise, args.score_type or head, digest)
    _tell(point, len(gts.image_ids))
    if all(each.cut is None for each in point.classes):
        raise DataError(
            f'No cut of any class can promise {_words(promise)}, see above: no file was written.'
        )
    save_operating_point(point, args.cuts)
    print(f'cuts: {args.cuts}')
    print(f'to use them: gfl-det infer --operating-point {args.cuts}, or')
    print(f'--cfg-options model.test_cfg.operating_point={args.cuts}')


def _goal(args: argparse.Namespace) -> tuple[Goal, float]:
    values: dict[Goal, float | None] = {
        'precision': args.precision,
        'recall': args.recall,
        'false_alarms': args.false_alarms_per_image,
    }
    return next((name, value) for name, value in values.items() if value is not None)


def _check_out(args: argparse.Namespace) -> None:
    """Check before the work that the outputs can be written."""
    if not args.cuts.endswith('.json'):
        raise DataError(f'{args.cuts} must end in .json: cuts are written as JSON.')
    check_writable(args.cuts, (args.truths, args.results, args.calibrator))


def _words(promise: Promise) -> str:
    whom = 'all classes at once' if promise.jointly else 'each class'
    what = PROMISES[promise.goal].format(promise.target)
    return f'{what} with confidence {promise.confidence:g} for {whom}'


def _tell(point: OperatingPoint, images: int) -> None:
    promise = point.promise
    print(f'{_words(promise)}, right at IoU {promise.iou:g}; {images} images:')
    for each in point.classes:
        found = _found(each, images)
        if each.cut is not None:
            print(f'{each.name}: kept from {each.cut:.2f}: {found}')
            continue
        then = (
            'all its boxes stay' if promise.goal == 'recall' else 'none of its boxes will be kept'
        )
        more = (
            f'about {each.more} more images like these are needed'
            if each.more is not None
            else 'not even with many more images like these: improve the detector'
        )
        print(f'{each.name}: no cut can promise it ({more}), so {then}; nearest: {found}')


def _found(each: ClassCut, images: int) -> str:
    shares = [f'{each.right} of {each.kept} kept boxes are right']
    shares.append(f'{each.right} of {each.gts} gts are found')
    shares.append(f'{(each.kept - each.right) / images:.3g} false alarms per image')
    return ', '.join(shares)
