"""Command ``gfl-det intervals``: fit and evaluate calibrators of edge intervals."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfl_det.cli.arguments import add_batch_size, add_detector, add_halves, count_or_zero, parsing
from gfl_det.errors import DataError
from gfl_det.utils.files import check_writable, writing

if TYPE_CHECKING:
    from gfl_det.calibration.calibrators import FitSource
    from gfl_det.calibration.intervals import IntervalCalibrator, Sharpness
    from gfl_det.inference.coverage import BoxCoverage, Coverage, Matched, Split

SHOWN = (0.5, 0.8, 0.9, 0.95)
IOU = 0.5
JOINT_LEVEL = 0.9


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog, description='Calibrate edge intervals to contain the stated share of gt edges.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    fitting = commands.add_parser('fit', help='fit on a split that is used for no other evaluation')
    measuring = commands.add_parser('measure', help='measure coverage on other images')
    for command, text in ((fitting, 'file to write'), (measuring, 'file that fit wrote')):
        add = command.add_argument
        add('intervals', metavar='INTERVALS', help=f'{text}, .json')
        add_detector(command)
        add('--truths', '--annotations', metavar='JSON', required=True, help='COCO annotations')
        add('--images', metavar='DIR', required=True, help='folder of their image files')
        add_halves(command, ('first', 'second'))
        add_batch_size(command)
    fitting.add_argument(
        '--together', action='store_true', help='one factor for all four sides, for few images'
    )
    measuring.add_argument(
        '--splits',
        type=count_or_zero,
        default=0,
        metavar='N',
        help='compare with intervals that do not use the distributions, in N random halvings of '
        'the images, such as 50',
    )
    measuring.add_argument(
        '--out', metavar='PNG', help='draw coverage against level into this file'
    )
    return parser


parse_arguments = parsing(make_parser)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    dict(fit=fit, measure=measure)[args.command](args)


def fit(args: argparse.Namespace) -> None:
    """Fit interval factors on a split and write them.

    Raises:
        GFLDetError: If a file cannot be used, or there are too few matches.
    """
    from gfl_det.calibration.files import save_interval_calibrator
    from gfl_det.calibration.intervals import IntervalCalibrator, fit_factors, fit_whole_boxes
    from gfl_det.inference.coverage import judge

    check_writable(args.intervals, (args.truths, args.checkpoint, args.config))
    split = _split(args)
    detector = _detector(args)
    judged = judge(detector, split, IOU, args.batch_size)
    levels, factors = fit_factors(judged.edges, together=args.together)
    calibrator = IntervalCalibrator(
        levels,
        factors,
        _head(detector),
        tuple(detector.classes),
        IOU,
        _source(split, judged, detector.classes),
        fit_whole_boxes(judged.edges, detector.classes) if len(judged.edges) > 1 else None,
    )
    save_interval_calibrator(calibrator, args.intervals)
    print(f'fitted on {len(judged.edges)} matched detections in {len(split.files)} images')
    for level in SHOWN:
        if level <= levels[-1]:
            sides = ', '.join(f'{each:.3f}' for each in calibrator.factors_at(level))
            print(f'level {level:g}: intervals times {sides} (left, top, right, bottom)')
    print(f'intervals: {args.intervals}')
    print(f'to use them: gfl-det infer --intervals {args.intervals}, or')
    print(f'--cfg-options model.test_cfg.interval_calibrator={args.intervals}')


def measure(args: argparse.Namespace) -> None:
    """Print coverage before and after calibration, on images not used to fit the calibrator.

    Raises:
        GFLDetError: If a file cannot be used, or an image was used to fit the calibrator.
    """
    from gfl_det.calibration.apply import check_interval_class_names
    from gfl_det.calibration.files import load_interval_calibrator
    from gfl_det.calibration.intervals import check_applies, compare_intervals
    from gfl_det.inference.coverage import box_coverage, judge

    if args.out:
        if Path(args.out).suffix.lower() != '.png':
            raise DataError(f'--out {args.out} must end in .png: it is drawn as PNG.')
        check_writable(args.out)
    calibrator = load_interval_calibrator(args.intervals)
    split = _split(args)
    seen = set(calibrator.source.images) & set(split.gts.image_keys)
    if seen:
        raise DataError(
            f'{len(seen)} of {len(split.files)} images were used to fit {args.intervals}: measure '
            'it on others.'
        )
    detector = _detector(args)
    check_applies(calibrator, args.intervals, _head(detector), len(detector.classes))
    check_interval_class_names(args.intervals, detector.classes, 'the detector')
    judged = judge(detector, split, calibrator.iou_threshold, args.batch_size)
    before, after = _both(judged, calibrator, SHOWN)
    print(
        f'{len(judged.edges)} detections match a gt box at IoU {calibrator.iou_threshold:g} in '
        f'{len(split.files)} images'
    )
    print(table(before, after))
    if calibrator.joint is not None:
        level = min(JOINT_LEVEL, calibrator.joint.levels[-1])
        print(f'\nwhole boxes, all four edges inside, level {level:g}:')
        fitted = calibrator.source.detections
        print(box_table(box_coverage(judged.edges, calibrator.joint, level, fitted)))
    if args.splits:
        print(f'\nkinds of intervals, level {JOINT_LEVEL:g}, {args.splits} halvings of the images:')
        print(kind_table(compare_intervals(judged.edges, JOINT_LEVEL, args.splits, args.seed)))
    if args.out:
        draw(*_both(judged, calibrator, calibrator.levels), Path(args.out))
        print(f'picture: {args.out}')


def table(before: Coverage, after: Coverage) -> str:
    """Table of coverage and mean width per level, before and after calibration."""
    lines = [
        '        share of true edges         mean width, px   calibrated: share of each side',
        'level   own    calibrated           own  calibrated  left   top    right  bottom  box',
    ]
    for row, level in enumerate(before.levels):
        sides = '  '.join(f'{share:.3f}' for share in after.share_of_sides[row])
        lines.append(
            f'{level:<6g}  {before.share[row]:.3f}  {after.share[row]:.3f}              '
            f'{before.width[row]:6.1f}  {after.width[row]:6.1f}      {sides}   '
            f'{after.share_of_boxes[row]:.3f}'
        )
    return '\n'.join(lines)


def box_table(rows: Sequence[BoxCoverage]) -> str:
    """Table of whole-box coverage by group, with its .95 range over splits of independent boxes."""
    width = max(5, *(len(each.group) for each in rows))
    lines = [f'{"group":{width}}  fitted  judged  inside  .95 interval   expected      px an edge']
    for each in rows:
        low, high = each.expected
        lines.append(
            f'{each.group:{width}}  {each.fitted:6d}  {each.judged:6d}   {each.share:.3f}  '
            f'{each.low:.3f} to {each.high:.3f}  {low:.3f}-{high:.3f}  {each.width:8.1f}'
        )
    return '\n'.join(lines)


def kind_table(kinds: Mapping[str, Sharpness]) -> str:
    """Table of coverage, width and interval score per kind, and of whole boxes."""
    lines = ['kind               edges inside  px wide  score   boxes inside  px wide']
    lines += [
        f'{name:17}         {each.coverage:.3f}  {each.width:7.2f}  {each.score:6.2f}         '
        f'{each.box_coverage:.3f}  {each.box_width:7.2f}'
        for name, each in kinds.items()
    ]
    return '\n'.join(lines)


def draw(before: Coverage, after: Coverage, path: Path) -> None:
    """Plot coverage against level before and after calibration, as a PNG.

    Raises:
        DataError: If the file cannot be written.
    """
    from gfl_det.visualization.charts import figure

    drawing = figure(5, 5)
    axes = drawing.subplots()
    axes.plot([0, 1], [0, 1], color='black', linewidth=0.8, linestyle=':')
    for name, colour, each in (('own', '#8d99ae', before), ('calibrated', '#2b7a78', after)):
        axes.plot(each.levels, each.share, 'o-', color=colour, label=name, markersize=4)
    axes.set(
        xlabel='level',
        ylabel='share of true edges in their intervals',
        xlim=(0.4, 1),
        ylim=(0.4, 1.01),
    )
    axes.set_aspect('equal')
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    with writing(path):
        drawing.savefig(path, dpi=130)


def _both(
    judged: Matched, calibrator: IntervalCalibrator, levels: Sequence[float]
) -> tuple[Coverage, Coverage]:
    from gfl_det.inference.coverage import coverage

    reached = [level for level in levels if level <= calibrator.levels[-1]]
    factors = [calibrator.factors_at(level) for level in reached]
    return coverage(judged.edges, reached), coverage(judged.edges, reached, factors)


def _split(args: argparse.Namespace) -> Split:
    """Images and ground truth of the arguments; all images exist."""
    from gfl_det.inference.coverage import check_files, read_split

    split = read_split(args.truths, args.images, args.half, args.seed)
    check_files(split, args.truths, args.images)
    return split


def _detector(args: argparse.Namespace) -> Any:
    from gfl_det.inference import GFLInferencer  # avoids a circular import through the heads

    return GFLInferencer(
        args.checkpoint, args.config, device=args.device, level=None, distributions=True
    )


def _head(detector: Any) -> str:
    return type(getattr(detector.model, 'bbox_head', detector.model)).__name__


def _source(split: Split, judged: Matched, classes: Sequence[str]) -> FitSource:
    from gfl_det.calibration.calibrators import FitSource
    from gfl_det.evaluation.detections import fingerprint

    digest = fingerprint(split.gts.of_classes(classes), judged.detections)
    return FitSource(digest, tuple(split.gts.image_keys), len(judged.edges))
