"""Command-line arguments that name detections and annotations, and what they are read into."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import add_cfg_options
from gfl_det.errors import ConfigError

if TYPE_CHECKING:
    from gfl_det.calibration.calibrators import FittedCalibrator
    from gfl_det.calibration.distribution import EdgeDetections
    from gfl_det.calibration.splits import Judged
    from gfl_det.evaluation.detections import Truths

HALVES = ('first', 'second')
FILES_HEAD = 'GFLHead'  # whose scores a result file is taken to hold


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files."""
    parser.add_argument('--truths', '--annotations', metavar='JSON', help='COCO annotations')
    parser.add_argument(
        '--results',
        metavar='JSON',
        help='COCO results with raw scores, such as `gfl-det test --out` writes',
    )


def add_detector_arguments(parser: argparse.ArgumentParser, default_split: str) -> None:
    """Add a detector to run in place of the files, and which of the images count."""
    parser.add_argument('--config', help='detector to run: a config file, or the name of one')
    parser.add_argument('--checkpoint', help='its weights: a file or an address')
    parser.add_argument(
        '--split',
        choices=['val', 'test'],
        default=default_split,
        help=f"the config's data to run it on (default: {default_split})",
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--half',
        choices=HALVES,
        help='take half of the images, drawn at random: fit on the first and judge on the second '
        'where there is one held-out split',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the draw of --half')


def read_data(
    args: argparse.Namespace, calibrator: FittedCalibrator | None = None
) -> tuple[Judged, str]:
    """Read the files, or run the detector, and take the half that was asked for.

    Args:
        args: the command's.
        calibrator: one to judge on them.

    Returns:
        Ground truth and detections, and the name of the head of the scores.

    Raises:
        GFLDetError: both or neither are given, or one of them cannot be used, or, before the
            detector runs, the calibrator does not fit.
    """
    from gfl_det.calibration.splits import Judged, split
    from gfl_det.evaluation.detections import detections_from_coco, read_json, truths_from_coco
    from gfl_det.utils.config import load_config

    files = (args.truths, args.results)
    detector = (getattr(args, 'config', None), getattr(args, 'checkpoint', None))
    if all(files) and not any(detector):
        gts = truths_from_coco(read_json(args.truths), args.truths)
        _check(args, calibrator, gts)
        found = detections_from_coco(read_json(args.results), gts, args.results)
        judged, head = Judged(gts, found), FILES_HEAD
    elif all(detector) and not any(files):
        from gfl_det.engine.run_split import (
            detect_split,
            score_type,  # loads mmdet
        )

        cfg = load_config(args.config, args.cfg_options)
        head = score_type(cfg)
        if calibrator is not None:
            calibrator.check_score_type(head)
        check = partial(_check, args, calibrator)
        judged = detect_split(cfg, args.checkpoint, args.split, check)
    else:
        other = ', or --config and --checkpoint' if hasattr(args, 'config') else ''
        raise ConfigError(f'give --truths and --results{other}: both of a pair, and no more')
    if getattr(args, 'half', None):
        judged = split(judged, args.seed)[HALVES.index(args.half)]
    return judged, head


def read_edges(
    args: argparse.Namespace, calibrator: FittedCalibrator | None = None
) -> tuple[Truths, EdgeDetections, str]:
    """Run the detector, keeping its distributions, and take the half that was asked for.

    Args:
        args: the command's.
        calibrator: one to judge on them.

    Returns:
        Ground truth, detections, and the name of the head.

    Raises:
        GFLDetError: no detector is given, or it cannot be used, or, before it runs, the calibrator
            does not fit.
    """
    from gfl_det.calibration.splits import split_images, take_edge_images
    from gfl_det.utils.config import load_config

    if not (getattr(args, 'config', None) and args.checkpoint) or args.truths or args.results:
        raise ConfigError(
            'a distribution calibrator reads the distributions of a detector, which result files '
            'lack: give --config and --checkpoint, and no --truths or --results'
        )
    from gfl_det.engine.run_split import (
        detect_edges,
        score_type,  # loads mmdet
    )

    cfg = load_config(args.config, args.cfg_options)
    head = score_type(cfg)
    if calibrator is not None:
        calibrator.check_score_type(head)
    check = partial(_check, args, calibrator)
    gts, found = detect_edges(cfg, args.checkpoint, args.split, check)
    if args.half:
        chosen = split_images(gts, args.seed)[HALVES.index(args.half)]
        gts, found = take_edge_images(gts, found, chosen)
    return gts, found, head


def _check(args: argparse.Namespace, calibrator: FittedCalibrator | None, truths: Truths) -> None:
    """Refuse a calibrator that does not fit the half of the ground truth that was asked for."""
    from gfl_det.calibration.splits import split_images, take_truths

    if calibrator is None:
        return
    if getattr(args, 'half', None):
        truths = take_truths(truths, split_images(truths, args.seed)[HALVES.index(args.half)])
    calibrator.check_judged(truths)
