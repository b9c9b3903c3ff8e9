"""Command ``gfl-det report``: write an HTML page about a detector."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import add_calibrator, add_cfg_options, count_or_zero, parsing
from gfl_det.cli.own_data import add_own_data, judged_config, work_dir_of
from gfl_det.errors import ConfigError, DataError
from gfl_det.utils.files import check_writable, writing

if TYPE_CHECKING:
    from gfl_det.visualization.report.data import ReportData

EPILOG = """\
SOURCE is a work dir of `gfl-det train`, whose best checkpoint (else the newest) is run on a split
of its config or of --data (without SOURCE, the work dir of that data is used); a .json file of COCO
results; or a result folder of `gfl-det infer-many`. Results need --truths, and --images for
pictures. Errors are classified as by TIDE (Bolya et al., ECCV 2020). Counts and pictures use
detections from the score with the best F1 over all classes on.
"""
ONLY_WORK_DIR = ('config', 'checkpoint', 'cfg_options', 'data')
ONLY_RESULTS = ('truths', 'images', 'logs')


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Write one self-contained HTML page about a detector.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        'source',
        metavar='SOURCE',
        nargs='?',
        type=Path,
        help='a work dir, or results; see below',
    )
    add(
        '--out',
        metavar='HTML',
        type=Path,
        default=Path('report.html'),
        help='the page to write (report.html)',
    )
    add('--title', help='title of the page')
    add_calibrator(parser)
    add(
        '--pictures',
        metavar='N',
        type=count_or_zero,
        default=48,
        help='maximum number of images (48)',
    )
    add(
        '--resamples',
        metavar='N',
        type=count_or_zero,
        default=0,
        help='.95 intervals of the metrics from N bootstrap resamples, such as 1000 (0: none)',
    )
    add('--quiet', action='store_true', help='no progress')
    work_dir = parser.add_argument_group('a work dir')
    work_dir.add_argument(
        '--split',
        choices=['val', 'test'],
        default='val',
        help='split of the config to evaluate (val)',
    )
    work_dir.add_argument(
        '--config', metavar='CONFIG', help='config instead of the one in the work dir'
    )
    work_dir.add_argument(
        '--checkpoint', metavar='CHECKPOINT', help='checkpoint instead of the best one'
    )
    add_own_data(work_dir)
    add_cfg_options(work_dir)
    files = parser.add_argument_group('results')
    files.add_argument(
        '--truths', '--annotations', metavar='JSON', help='COCO annotations of the images'
    )
    files.add_argument('--images', metavar='DIR', help='folder of the images; default: no pictures')
    files.add_argument('--logs', metavar='DIR', type=Path, help='work dir with training curves')
    return parser


def _check_source(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.source is None and args.data is None:
        parser.error('give SOURCE, --data PATH, or both')


parse_arguments = parsing(make_parser, check=_check_source)


def run(args: argparse.Namespace) -> None:
    """Write the page and print its path.

    Raises:
        GFLDetError: See :func:`report`.
    """
    path = report(args)
    print(f'report: {path} ({path.stat().st_size / 1e6:.1f} MB)')


def report(args: argparse.Namespace) -> Path:
    """Write the page.

    Returns:
        Path of the page.

    Raises:
        GFLDetError: If inputs are missing or do not match, or the page cannot be written.
    """
    from gfl_det.visualization.report.analysis import analyse
    from gfl_det.visualization.report.page import draw_gallery, render

    _check_out(args.out)
    data = _read(args)
    if args.title:
        data = data._replace(title=args.title)
    analysis = analyse(data, not args.quiet, args.resamples)
    analysis.values['pictures'] = draw_gallery(data, analysis, args.pictures, not args.quiet)
    page = render(analysis.values)
    with writing(args.out):
        args.out.write_text(page, encoding='utf-8', errors='replace')
    return args.out


def _read(args: argparse.Namespace) -> ReportData:
    from gfl_det.utils.config import load_config
    from gfl_det.visualization.report.data import read_results, scalar_files

    if args.source is None:
        args.source = work_dir_of(args)
        args.data = None if args.source.is_dir() else args.data
    if args.source.is_dir() and not (args.source / 'detections').is_dir():
        _refuse(args, ONLY_RESULTS, 'a work dir')
        from gfl_det.engine.training.checkpoints import best_checkpoint
        from gfl_det.visualization.report.data import run_work_dir  # loads mmdet

        if args.data is None:
            cfg = load_config(args.config or str(args.source), args.cfg_options)
            checkpoint = args.checkpoint or str(best_checkpoint(args.source))
        else:
            checkpoint = args.checkpoint or str(best_checkpoint(args.source))
            cfg, checkpoint = judged_config(args, checkpoint)
            args.title = args.title or f'{Path(checkpoint).stem} on {args.data}'
        return run_work_dir(args.source, cfg, checkpoint, args.split, args.calibrator)
    if not args.source.exists():
        raise DataError(f'{args.source} does not exist: give a work dir or a file of results.')
    _refuse(args, ONLY_WORK_DIR, 'results')
    if args.truths is None:
        raise ConfigError(f'{args.source} is taken for results: give their --truths too.')
    data = read_results(str(args.source), args.truths, args.images, args.calibrator)
    if args.images and not any(Path(args.images, name).is_file() for name in data.names):
        raise DataError(
            f'None of the {len(data.names)} images of {args.truths} is in {args.images}, such as '
            f'{data.names[0]}: give their folder with --images.'
        )
    scalars = scalar_files(args.logs) if args.logs else []
    if args.logs and not scalars:
        raise DataError(
            f'--logs {args.logs} has no scalars.json: name a work dir of gfl-det train.'
        )
    return data._replace(scalars=scalars)


def _refuse(args: argparse.Namespace, names: Sequence[str], what: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            option = name.replace('_', '-')
            raise ConfigError(f'--{option} is not for {what} ({args.source}): leave it out.')


def _check_out(path: Path) -> None:
    """Check before the work that the output can be written."""
    if path.suffix not in ('.html', '.htm'):
        raise DataError(f'{path} must end in .html.')
    check_writable(path)
