"""Command ``gfl-det calibrate``: fit, apply and report score calibrators."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import CONFIG_HELP, add_cfg_options, add_halves, parsing
from gfl_det.cli.own_data import add_own_data, judged_config
from gfl_det.errors import ConfigError, DataError
from gfl_det.utils.choices import DEFAULT_EVIDENCE, EVIDENCE_GROUPS, FIT_METHODS
from gfl_det.utils.files import check_writable, make_folder, write_json

if TYPE_CHECKING:
    import numpy as np
    from mmengine.config import Config

    from gfl_det.calibration.calibrators import Cut, FittedCalibrator, Method
    from gfl_det.calibration.distribution import EdgeDetections
    from gfl_det.calibration.splits import Judged
    from gfl_det.evaluation.detections import Detections, GroundTruth

HALVES = ('first', 'second')
FILES_HEAD = 'GFLHead'  # assumed head of the scores in a result file
DISTRIBUTION = 'distribution'
# Isotonic maps fitted on 79 photographs of COCO lowered AP from .362 to .321, on 87 of blood cells
# by .006; logistic ones by at most .003 (docs/results/calibration.md). From where on they are safe
# was not measured.
FEW_PICTURES = 500
SHOWN = ('LaECE_0', 'LaACE_0', 'D-ECE', 'oLRP', 'AP', 'AP50')


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for annotation and result files."""
    parser.add_argument('--truths', '--annotations', metavar='JSON', help='COCO annotations')
    parser.add_argument(
        '--results',
        metavar='JSON',
        help='COCO results with raw scores, such as `gfl-det test --out` writes',
    )


def add_detector_arguments(parser: argparse.ArgumentParser, default_split: str) -> None:
    """Add the arguments for a detector to run instead of files, and for a subset of images."""
    parser.add_argument('--config', help=f'detector to run: {CONFIG_HELP}')
    parser.add_argument(
        '--checkpoint', help='its weights: a file or a URL; default: the best one of the work dir'
    )
    add_own_data(parser)
    parser.add_argument(
        '--split',
        choices=['val', 'test'],
        default=default_split,
        help=f'split of the config to run it on (default: {default_split})',
    )
    add_cfg_options(parser)
    add_halves(parser, HALVES)


def read_data(
    args: argparse.Namespace, calibrator: FittedCalibrator | None = None
) -> tuple[Judged, str]:
    """Read the files or run the detector, and select the requested half.

    Args:
        args: Arguments of the command.
        calibrator: Calibrator to evaluate on the data.

    Returns:
        Ground truth and detections, and the name of the head of the scores.

    Raises:
        GFLDetError: If both or neither of files and detector are given, one of them cannot be used,
            or the calibrator does not fit, which is checked before the detector runs.
    """
    from gfl_det.calibration.splits import Judged, split
    from gfl_det.evaluation.detections import detections_from_coco, gts_from_coco, read_json

    files = (args.truths, args.results)
    detector = None if any(files) and _names_detector(args) else _detector(args)
    if all(files) and not _names_detector(args):
        gts = gts_from_coco(read_json(args.truths), args.truths)
        _check(args, calibrator, gts)
        found = detections_from_coco(read_json(args.results), gts, args.results)
        judged, head = Judged(gts, found), FILES_HEAD
    elif detector is not None and not any(files):
        from gfl_det.engine.runner import (
            detect_split,
            score_type,  # loads mmdet
        )

        cfg, checkpoint = detector
        head = score_type(cfg)
        if calibrator is not None:
            calibrator.check_score_type(head)
        check = partial(_check, args, calibrator)
        judged = detect_split(cfg, checkpoint, args.split, check)
    else:
        other = ', or --config and --checkpoint, or --data' if hasattr(args, 'config') else ''
        raise ConfigError(f'give --truths and --results{other}: both of a pair, and no more')
    if getattr(args, 'half', None):
        judged = split(judged, args.seed)[HALVES.index(args.half)]
    return judged, head


def _names_detector(args: argparse.Namespace) -> bool:
    return any(getattr(args, name, None) for name in ('config', 'checkpoint', 'data'))


def _detector(args: argparse.Namespace) -> tuple[Config, str] | None:
    """Return the config and checkpoint of the arguments; None if they name neither.

    Raises:
        GFLDetError: If one of them cannot be read, or is missing.
    """
    config, checkpoint = getattr(args, 'config', None), getattr(args, 'checkpoint', None)
    if getattr(args, 'data', None) is not None:
        if config is not None:
            raise ConfigError('give --config or --data, not both: the model of --data is --model')
        return judged_config(args, checkpoint)
    if not _names_detector(args):
        return None
    from gfl_det.engine.training.checkpoints import best_checkpoint
    from gfl_det.utils.config import load_config

    if config is None or (checkpoint is None and not os.path.isdir(config)):
        raise ConfigError('give --config and --checkpoint, a work dir as --config, or --data')
    return load_config(config, args.cfg_options), checkpoint or str(best_checkpoint(config))


def read_edges(
    args: argparse.Namespace, calibrator: FittedCalibrator | None = None
) -> tuple[GroundTruth, EdgeDetections, str]:
    """Run the detector, keeping its distributions, and select the requested half.

    Args:
        args: Arguments of the command.
        calibrator: Calibrator to evaluate on the data.

    Returns:
        Ground truth, detections, and the name of the head.

    Raises:
        GFLDetError: If no detector is given, it cannot be used, or the calibrator does not fit,
            which is checked before the detector runs.
    """
    from gfl_det.calibration.splits import split_images, take_edge_images

    detector = _detector(args)
    if detector is None or args.truths or args.results:
        raise ConfigError(
            'a distribution calibrator reads the distributions of a detector, which result files '
            'lack: give --config and --checkpoint, and no --truths or --results'
        )
    from gfl_det.engine.runner import (
        detect_edges,
        score_type,  # loads mmdet
    )

    cfg, checkpoint = detector
    head = score_type(cfg)
    if calibrator is not None:
        calibrator.check_score_type(head)
    check = partial(_check, args, calibrator)
    gts, found = detect_edges(cfg, checkpoint, args.split, check)
    if args.half:
        chosen = split_images(gts, args.seed)[HALVES.index(args.half)]
        gts, found = take_edge_images(gts, found, chosen)
    return gts, found, head


def _check(args: argparse.Namespace, calibrator: FittedCalibrator | None, gts: GroundTruth) -> None:
    """Refuse a calibrator that does not fit the requested half of the ground truth."""
    from gfl_det.calibration.splits import split_images, take_gts

    if calibrator is None:
        return
    if getattr(args, 'half', None):
        gts = take_gts(gts, split_images(gts, args.seed)[HALVES.index(args.half)])
    calibrator.check_judged(gts)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog, description='Fit calibrators of detection scores; use them.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    fitting = commands.add_parser('fit', help='fit on a split that nothing else is judged on')
    applying = commands.add_parser('apply', help='calibrate the scores of a result file')
    reporting = commands.add_parser('report', help='show what a calibrator does, on other images')
    texts = ('the file to write', 'what fit wrote', 'what fit wrote')
    for command, text in zip((fitting, applying, reporting), texts):
        command.add_argument('calibrator', metavar='CALIBRATOR', help=text)
        add_data_arguments(command)
    for command, split in ((fitting, 'val'), (reporting, 'test')):
        add_detector_arguments(command, split)
    add_halves(applying, HALVES)
    _add_fit_arguments(fitting)
    applying.add_argument('--out', required=True, metavar='JSON', help='the results to write')
    reporting.add_argument('--out', required=True, metavar='DIR', help='folder of the report')
    return parser


parse_arguments = parsing(make_parser)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    dict(fit=fit, apply=apply, report=report)[args.command](args)


def _add_fit_arguments(fitting: argparse.ArgumentParser) -> None:
    fitting.add_argument(
        '--method',
        choices=[*FIT_METHODS, DISTRIBUTION],
        help=f'kind of map (isotonic, of fewer than {FEW_PICTURES} pictures platt); {DISTRIBUTION} '
        'predicts the IoU from the edges as well and needs a detector',
    )
    fitting.add_argument(
        '--evidence',
        nargs='+',
        choices=EVIDENCE_GROUPS,
        default=list(DEFAULT_EVIDENCE),
        help=f'what {DISTRIBUTION} reads (default: all but box); score box: conditional on size',
    )
    fitting.add_argument('--tau', type=float, default=0.0, help='IoU that a match needs')
    fitting.add_argument(
        '--target', choices=['iou', 'precision'], default='iou', help='what a score should be'
    )
    fitting.add_argument(
        '--raw-cut',
        type=_cut,
        default=0.0,
        metavar='SCORE',
        help='least raw score to fit on: 0 for all, as a detector calibrates all; lrp for the '
        "published protocol's threshold of each class",
    )
    fitting.add_argument('--class-agnostic', action='store_true', help='one map for all classes')
    fitting.add_argument(
        '--quality-focal',
        action='store_true',
        help='fit platt or temperature by Quality Focal Loss in place of cross entropy',
    )
    fitting.add_argument(
        '--grid', action='store_true', help='search platt on the published grid of 100 x 100'
    )
    fitting.add_argument(
        '--score-type',
        metavar='HEAD',
        help="name of the head of the scores; by default the config's, or GFLHead for --results",
    )


def _cut(text: str) -> Cut:
    if text == 'lrp':
        return 'lrp'
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'a score in [0, 1] or lrp is needed, not {text!r}')
    return value


def fit(args: argparse.Namespace) -> None:
    """Fit a calibrator, write it, and print its effect on the data it was fitted on.

    Raises:
        GFLDetError: See :func:`.calibrators.fit_calibrator`.
    """
    from gfl_det.calibration.calibrators import Settings, fit_calibrator
    from gfl_det.calibration.files import save_calibrator

    check_writable(args.calibrator, (args.truths, args.results, args.checkpoint, args.config))
    cuts: tuple[Cut, Cut] = (args.raw_cut, 'lrp')
    if args.method == DISTRIBUTION:
        _fit_distribution(args, cuts)
        return
    (gts, detections), head = read_data(args)
    _refuse_none(args, detections)
    settings = Settings(
        args.method or _method_for(len(gts.image_ids)),
        args.tau,
        args.target,
        args.class_agnostic,
        cuts,
        quality_focal=args.quality_focal,
        grid=args.grid,
    )
    calibrator = fit_calibrator(detections, gts, settings, args.score_type or head)
    save_calibrator(calibrator, args.calibrator)
    scores = calibrator.calibrate(detections.scores, detections.label)
    _tell(args.calibrator, calibrator, detections, scores, gts)


def _method_for(pictures: int) -> Method:
    """Choose and print a method; with few pictures, isotonic maps have long steps."""
    method: Method = 'platt' if pictures < FEW_PICTURES else 'isotonic'
    print(f'method: {method}, for {pictures} pictures (--method names another)')
    return method


def _fit_distribution(args: argparse.Namespace, cuts: tuple[Cut, Cut]) -> None:
    from gfl_det.calibration.distribution import DistributionSettings, fit_distribution_calibrator
    from gfl_det.calibration.files import save_distribution_calibrator

    for name in ('class_agnostic', 'quality_focal', 'grid'):
        if getattr(args, name):
            option = name.replace('_', '-')
            raise ConfigError(f'--method {DISTRIBUTION} has no --{option}: leave it out')
    settings = DistributionSettings(tuple(args.evidence), args.tau, args.target, cuts)
    gts, found, head = read_edges(args)
    _refuse_none(args, found.detections)
    calibrator = fit_distribution_calibrator(found, gts, settings, args.score_type or head)
    save_distribution_calibrator(calibrator, args.calibrator)
    scores = calibrator.calibrate(found)
    _tell(args.calibrator, calibrator, found.detections, scores, gts)


def _tell(
    path: str,
    calibrator: FittedCalibrator,
    detections: Detections,
    scores: np.ndarray,
    gts: GroundTruth,
) -> None:
    for each in calibrator.classes:
        print(f'{each.name}: {each.status}, {each.detections} detections')
    print('on the images it was fitted on, which flatters it (report judges others):')
    _compare(detections, scores, gts)
    print(f'calibrator: {path}')
    print(f'to use it: --cfg-options model.test_cfg.calibrator={path}')


def apply(args: argparse.Namespace) -> None:
    """Write a result file with calibrated scores, without applying score thresholds.

    Raises:
        GFLDetError: See :class:`.calibrators.DetectionCalibrator`.
    """
    from gfl_det.evaluation.detections import read_json

    check_writable(args.out, (args.truths, args.results, args.calibrator))
    _, gts, detections, scores = calibrated_data(args)
    _compare(detections, scores, gts)
    kept = read_json(args.results)
    if args.half:
        ids = set(map(str, gts.image_ids))
        kept = [entry for entry in kept if str(entry['image_id']) in ids]
    entries = zip(kept, scores.tolist())  # detections are in the order of the file
    write_json(args.out, [each | dict(score=score) for each, score in entries])
    print(f'results: {args.out}')


def report(args: argparse.Namespace) -> None:
    """Write diagrams and a page on the effect of a calibrator on detections.

    Raises:
        GFLDetError: See :class:`.calibrators.DetectionCalibrator`.
    """
    from gfl_det.visualization.report.calibration import PAGE, write_report

    check_writable(make_folder(args.out) / PAGE)
    calibrator, gts, detections, scores = calibrated_data(args)
    _refuse_none(args, detections)
    metrics = _compare(detections, scores, gts)
    files = write_report(calibrator, detections, scores, gts, metrics, Path(args.out))
    print('written:', ', '.join(map(str, files)))


def _refuse_none(args: argparse.Namespace, detections: Detections) -> None:
    if not len(detections.scores):
        found = args.results or f'the {args.split} split with {args.checkpoint}'
        raise DataError(
            f'{found} gives no detections: take the results of a trained detector, or lower '
            'model.test_cfg.score_thr.'
        )


def calibrated_data(
    args: argparse.Namespace,
) -> tuple[FittedCalibrator, GroundTruth, Detections, np.ndarray]:
    """Calibrate the scores of images that were not used to fit the calibrator."""
    from gfl_det.calibration.distribution import DistributionCalibrator
    from gfl_det.calibration.files import load_any_calibrator

    calibrator = load_any_calibrator(args.calibrator)
    if isinstance(calibrator, DistributionCalibrator):
        if getattr(args, 'command', None) == 'apply':
            raise ConfigError(
                f'{args.calibrator} reads the distributions of the edges too, which a result file '
                'lacks: let the detector apply it, by `gfl-det test CONFIG CHECKPOINT --out '
                f'FILE.json --cfg-options model.test_cfg.calibrator={args.calibrator}`.'
            )
        gts, found, _ = read_edges(args, calibrator)
        calibrator = calibrator.for_classes(gts.class_names)
        detections, scores = found.detections, calibrator.calibrate(found)
    else:
        (gts, detections), _ = read_data(args, calibrator)
        calibrator = calibrator.for_classes(gts.class_names)
        scores = calibrator.calibrate(detections.scores, detections.label)
    return calibrator, gts, detections, scores


def _compare(
    detections: Detections, calibrated: np.ndarray, gts: GroundTruth
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of raw and calibrated scores; some are printed side by side."""
    from gfl_det.evaluation.evaluate import INSIDE, evaluate_detections, inside_floor

    after = evaluate_detections(detections._replace(scores=calibrated), gts)
    before = evaluate_detections(detections, gts)
    print(f'{"":8} {"raw":>8} {"calibrated":>11}   count   .95 of floor      debiased')
    for name in SHOWN:
        sides = [f'{each[name]:.4f}{"*" * inside_floor(each, name)}' for each in (before, after)]
        line = f'{name:8} {sides[0]:>8} {sides[1]:>11}'
        if f'{name}_floor' in after:
            line += f' {after[f"{name}_count"]:7.0f}'
            for end in ('_floor_95', '_debiased'):
                line += f'  {before[name + end]:6.4f} {after[name + end]:6.4f}'
        print(line)
    if any(inside_floor(each, name) for each in (before, after) for name in SHOWN):
        print(INSIDE)
    return before, after
