"""The command line of ``tools/prove_detection.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gfl_det.calibration.splits import Judged
from gfl_det.cli.arguments import add_cfg_options
from gfl_det.errors import ConfigError
from gfl_det.evaluation.detections import detections_from_coco, gts_from_coco, read_json
from gfl_det.utils.config import load_config
from gfl_det.utils.files import check_writable, write_json
from projects.calibration_study.detection import METHODS, Outcome, compare, halves, means
from projects.calibration_study.tables import check_name, markdown, spread

# Columns of the two tables: heading, view, metric.
ALL_COLUMNS = (
    ('score - IoU', 'all', 'bias'),
    ('LaECE_0', 'all', 'LaECE_0'),
    ('LaACE_0', 'all', 'LaACE_0'),
    ('D-ECE', 'all', 'D-ECE'),
    ('oLRP', 'all', 'oLRP'),
    ('AP', 'all', 'AP'),
)
KEPT_COLUMNS = (
    ('score - IoU', 'kept', 'bias'),
    ('LaECE_0', 'kept', 'LaECE_0'),
    ('LaACE_0', 'kept', 'LaACE_0'),
    ('LRP_0', 'kept', 'LRP_0'),
    ('FN_0', 'kept', 'LRP_0_FN'),
    ('D-ECE, .3', 'precision', 'D-ECE'),
)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Judge the scores of detectors, raw and after each calibrator, on images that '
        'it was not fitted on. Rows of one NAME are averaged.'
    )
    parser.add_argument(
        '--run',
        nargs=3,
        action='append',
        default=[],
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help='a detector: fitted on the val split of its config, judged on the test split',
    )
    parser.add_argument(
        '--results',
        nargs=5,
        action='append',
        default=[],
        metavar=('NAME', 'VAL_GTS', 'VAL_RESULTS', 'TEST_GTS', 'TEST_RESULTS'),
        help='COCO files in place of a detector; with --halves those of test are not read',
    )
    parser.add_argument(
        '--halves',
        type=int,
        default=0,
        metavar='N',
        help='cut the val split in two at random N times, in place of a test split',
    )
    add_cfg_options(parser, 'override values of each config, such as data_root=DIR')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/proof/detection.json'),
        help='file for all values; detections of --run are kept beside it',
    )
    return parser.parse_args(argv)


def prove(args: argparse.Namespace) -> None:
    """Judge each detector, print both tables, write the JSON file.

    Raises:
        GFLDetError: there is nothing to judge, or a source cannot be used.
    """
    if not (args.run or args.results) or args.halves < 0:
        raise ConfigError('give at least one --run or --results, and --halves of at least 0')
    for name, *_ in args.run:
        check_name(name)
    check_writable(args.out)
    total = len(args.results) + len(args.run)
    outcomes: list[Outcome] = []
    for number, (name, pairs) in enumerate(_sources(args)):
        for cut, (fitting, judged) in enumerate(pairs):
            outcomes += compare(name, fitting, judged, cut)
        print(f'[{number + 1}/{total}] {name} judged', file=sys.stderr, flush=True)
    write_json(args.out, [each._asdict() for each in outcomes], indent=1)
    print(table(outcomes, ALL_COLUMNS), table(outcomes, KEPT_COLUMNS), sep='\n\n')
    print(f'\nvalues: {args.out}')


def table(outcomes: list[Outcome], columns: Sequence[tuple[str, str, str]]) -> str:
    """Means and standard deviations as Markdown, a detector and a calibrator a row."""
    rows = []
    for name in dict.fromkeys(each.name for each in outcomes):
        for method in METHODS:
            cells = (means(outcomes, name, method, *column[1:]) for column in columns)
            shown = 'raw' if method == 'identity' else method
            rows.append([name, shown, *(spread(values.tolist()) for values in cells)])
    head = ['detector', 'calibrator', *(column[0] for column in columns)]
    return markdown(head, rows, words=2)


def _sources(args: argparse.Namespace) -> Iterator[tuple[str, list[tuple[Judged, Judged]]]]:
    """Names of detectors, each with pairs of images to fit on and to judge."""
    for name, *files in args.results:
        val = read_pair(files[0], files[1])
        if args.halves:
            yield name, halves(val, args.halves)
        else:
            yield name, [(val, read_pair(files[2], files[3]))]
    for number, (name, config, checkpoint) in enumerate(args.run):
        from gfl_det.engine.runner import (
            Split,
            detect_split,  # loads mmdet
        )

        parts = []
        splits: tuple[Split, ...] = ('val',) if args.halves else ('val', 'test')
        for part in splits:
            print(f'{name}: detecting on {part}', file=sys.stderr, flush=True)
            cfg = load_config(config, args.cfg_options)
            parts.append(detect_split(cfg, checkpoint, part))
            keep(parts[-1], args.out.with_name(f'{name}-{number}.{part}.bbox.json'))
        yield name, halves(parts[0], args.halves) if args.halves else [(parts[0], parts[1])]


def read_pair(gts_file: str, results_file: str) -> Judged:
    """Ground truth and detections of two COCO files."""
    gts = gts_from_coco(read_json(gts_file), gts_file)
    return Judged(gts, detections_from_coco(read_json(results_file), gts, results_file))


def keep(judged: Judged, path: Path) -> None:
    """Write detections as COCO results, for a later ``--results``."""
    gts, found = judged
    rows = zip(*(values.tolist() for values in found))
    entries = [
        dict(
            image_id=gts.image_ids[image],
            category_id=gts.category_ids[label],
            bbox=box,
            score=score,
        )
        for image, label, box, score in rows
    ]
    write_json(path, entries)
