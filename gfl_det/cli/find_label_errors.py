"""Command ``gfl-det find-label-errors``: rank suspicious labels, review and correct them."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import (
    add_batch_size,
    add_config_and_device,
    add_seed,
    count,
    count_or_zero,
    parsing,
    share,
)
from gfl_det.errors import ConfigError, DataError
from gfl_det.utils.files import check_writable, write_json, write_text

if TYPE_CHECKING:
    from gfl_det.evaluation.label_errors import SuspectLabel
    from gfl_det.evaluation.label_evidence import UncertainDetections
    from gfl_det.inference.coverage import Split

EPILOG = """\
SOURCE is a checkpoint or a work dir, which is run on --images, or a .json file of results with
uncertainty (gfl-det test or infer). The detector must not have been trained on these labels; if it
was, --folds K trains K detectors with --config, each without one part of the images (the same
command resumes an interrupted run). The list is written to FILE.json, a page for the review to
FILE.html; --apply applies the decisions that the page saves and writes a new file.
"""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Rank labels that are probably wrong, and write corrected ones after a review.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('source', nargs='?', metavar='SOURCE', help='see below; none with --folds or --apply')
    add('--annotations', '--truths', metavar='JSON', required=True, help='COCO labels to check')
    add('--images', metavar='DIR', help='folder of their image files')
    add('--out', metavar='FILE', type=Path, required=True, help='list to write, .json')
    add(
        '--least',
        metavar='P',
        type=share,
        default=0.05,
        help='minimum probability of listed errors (0.05)',
    )
    add(
        '--pictures',
        metavar='N',
        type=count_or_zero,
        default=300,
        help='pictures on the page (300)',
    )
    add_config_and_device(parser)
    add_batch_size(parser)
    add_seed(parser, 'seed of the synthetic errors behind the probabilities, and of --folds')
    add('--quiet', action='store_true', help='no progress')
    folds = parser.add_argument_group('labels that the detector was trained on')
    folds.add_argument(
        '--folds', metavar='K', type=count, help='train K detectors, each without one part'
    )
    folds.add_argument('--work-dir', metavar='DIR', type=Path, help='folder of the trainings')
    review = parser.add_argument_group('after the review')
    review.add_argument(
        '--apply', metavar='DECISIONS', help='write corrected annotations to --out, a new file'
    )
    return parser


def _check_source(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    given = [name for name in ('source', 'folds', 'apply') if getattr(args, name) is not None]
    if len(given) != 1:
        parser.error('give one of SOURCE, --folds K and --apply DECISIONS')
    if args.folds is not None:
        missing = [name for name in ('config', 'work_dir', 'images') if not getattr(args, name)]
        if missing or args.folds < 2:
            parser.error('--folds K takes K of at least 2, --config, --work-dir and --images')


parse_arguments = parsing(make_parser, check=_check_source)


def run(args: argparse.Namespace) -> None:
    """Write the list and the page, or the corrected annotations.

    Raises:
        GFLDetError: If inputs are missing or do not match, or an output cannot be written.
    """
    if args.out.suffix != '.json':
        raise DataError(f'--out {args.out} must end in .json.')
    if args.apply is not None:
        apply_review(args)
        return
    for path in (args.out, args.out.with_suffix('.html')):
        check_writable(path, (args.annotations, args.source, args.config))
    from gfl_det.evaluation.detections import read_annotations
    from gfl_det.evaluation.label_errors import find_label_errors, suspect_entries
    from gfl_det.evaluation.label_evidence import image_sizes
    from gfl_det.inference.coverage import check_files, read_split

    split = read_split(args.annotations, args.images or '.')
    if split.gts.crowd.all():
        raise DataError(f'{args.annotations} has no labels to check: give annotations with boxes.')
    if args.images:
        check_files(split, args.annotations, args.images)
    found = _detections(args, split)
    table = read_annotations(args.annotations)
    suspects = find_label_errors(split.gts, found, image_sizes(table), args.seed, args.least)
    entries = suspect_entries(suspects, split.gts, table.annotation_ids)
    write_json(args.out, entries, indent=1)
    _tell(suspects, args.out)
    _write_page(args, split, found, suspects, entries)


def _detections(args: argparse.Namespace, split: Split) -> UncertainDetections:
    if args.folds is not None:
        from gfl_det.inference.folds import detect_folds, train_folds

        folds = train_folds(
            args.config, args.annotations, args.images, args.work_dir, args.folds, args.seed
        )
        return detect_folds(folds, split, args.device, args.batch_size, not args.quiet)
    if Path(args.source).suffix == '.json':
        return read_uncertain(args.source, args.annotations)
    if not args.images:
        raise ConfigError(f'{args.source} is run on the images: give their folder with --images.')
    from gfl_det.inference import GFLInferencer
    from gfl_det.inference.coverage import detect_unsuppressed
    from gfl_det.inference.folds import seen_in_training

    warning = seen_in_training(args.source, args.config, split)
    if warning:
        print(f'warning: {warning}', file=sys.stderr)
    detector = GFLInferencer(args.source, args.config, device=args.device, level=None)
    return detect_unsuppressed(detector, split, args.batch_size, not args.quiet)


def read_uncertain(results: str, annotations: str) -> UncertainDetections:
    """Read detection results with edge uncertainty.

    Raises:
        DataError: If the results lack it, or belong to other images or classes.
    """
    from gfl_det.evaluation.label_evidence import UncertainDetections
    from gfl_det.visualization.report.data import read_results

    data = read_results(results, annotations)
    if data.edge_std is None:
        raise DataError(
            f'{results} has no edge_std: write it with gfl-det infer, or with gfl-det test and '
            'test_cfg.with_uncertainty=True, from a detector with a GFL head.'
        )
    return UncertainDetections(*data.detections, data.edge_std)


def _tell(suspects: Sequence[SuspectLabel], out: Path) -> None:
    from gfl_det.evaluation.label_errors import KINDS
    from gfl_det.utils.console import print_table

    number = Counter(each.kind for each in suspects)
    likely = Counter(each.kind for each in suspects if each.probability >= 0.5)
    rows = [[kind, str(number[kind]), str(likely[kind])] for kind in KINDS]
    print_table('', ['kind', 'listed', 'probability from .5'], rows)
    print(f'list: {out}')


def _write_page(
    args: argparse.Namespace,
    split: Split,
    found: UncertainDetections,
    suspects: Sequence[SuspectLabel],
    entries: Sequence[dict],
) -> None:
    from gfl_det.datasets.decisions import digest_of
    from gfl_det.visualization.report.review import ReviewData, review_page

    data = ReviewData(
        f'Suspicious labels of {Path(args.annotations).name}',
        Path(args.annotations).name,
        digest_of(Path(args.annotations).read_bytes()),
        split.gts,
        [path.name for path in split.files],
        found,
        suspects,
        entries,
    )
    files = split.files if args.images else None
    page = args.out.with_suffix('.html')
    write_text(page, review_page(data, files, args.pictures, not args.quiet))
    print(f'page: {page}')


def apply_review(args: argparse.Namespace) -> None:
    """Write corrected annotations from the decisions of the page.

    Raises:
        DataError: If the output file exists, or the decisions are for other annotations.
    """
    import json

    from gfl_det.datasets.annotations import parse
    from gfl_det.datasets.decisions import apply_decisions, digest_of, read_decisions
    from gfl_det.evaluation.detections import read_annotations, read_json

    if args.out.exists():
        raise DataError(f'{args.out} exists, and nothing is overwritten: name a new file.')
    check_writable(args.out)
    read_annotations(args.annotations)  # refuses invalid COCO files
    content = Path(args.annotations).read_bytes()
    decisions = read_decisions(
        read_json(args.apply), args.apply, digest_of(content), args.annotations
    )
    corrected, counts = apply_decisions(parse(content, args.annotations), decisions, args.apply)
    write_text(args.out, json.dumps(corrected))
    print(', '.join(f'{number} {what}' for what, number in counts.items()) or 'nothing to change')
    print(f'annotations: {args.out}')
