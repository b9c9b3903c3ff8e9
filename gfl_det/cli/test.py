"""Command ``gfl-det test``: evaluate a detector, and write detections and pictures."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gfl_det.cli.arguments import BEST_HELP, CHECKPOINT_HELP, add_optimize, count, parsing
from gfl_det.cli.own_data import judged_config, work_dir_of
from gfl_det.cli.train import add_runner_arguments, set_local_rank

# Options that --results would ignore.
OF_A_DETECTOR = ('show_dir', 'out', 'tta', 'resamples', 'optimize', 'classwise', 'cfg_options')


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Test a detector: print the COCO table, write detections and pictures.',
    )
    add_runner_arguments(parser)
    parser.add_argument(
        'checkpoint', nargs='?', metavar='CHECKPOINT', help=f'{CHECKPOINT_HELP}; {BEST_HELP}'
    )
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='draw every tested image into this folder: ground truth beside soft-edged predictions',
    )
    parser.add_argument(
        '--out', metavar='FILE', help='write detections: .pkl (samples) or .json (COCO results)'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument(
        '--resamples',
        type=count,
        metavar='N',
        help='print .95 intervals of the metrics from N bootstrap resamples (1000)',
    )
    add_optimize(parser)
    parser.add_argument(
        '--results',
        metavar='DIR',
        help='evaluate a result folder of gfl-det infer-many; needs only --annotations',
    )
    parser.add_argument('--annotations', metavar='JSON', help='COCO file for --results')
    parser.add_argument(
        '--workers',
        type=count,
        default=1,
        metavar='N',
        help='processes that match detections with gt boxes for --results (1)',
    )
    parser.add_argument('--classwise', action='store_true', help='also print the AP of each class')
    return parser


def _check_detector(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse a command line without a detector; with --data, a single name is the checkpoint."""
    if (args.results is None) != (args.annotations is None):
        parser.error('--results DIR and --annotations JSON belong together')
    if args.results is not None:
        if args.config is not None or args.data is not None:
            parser.error('--results DIR takes no CONFIG and no --data: the detections are there')
        given = [name for name in OF_A_DETECTOR if getattr(args, name) not in (None, False)]
        if given:
            option = given[0].replace('_', '-')
            parser.error(f'--results DIR takes no --{option}: gfl-det report DIR shows more')
    elif args.data is not None and args.config is not None:
        if args.checkpoint is not None:
            parser.error(f'give CONFIG or --data PATH, not both (CONFIG is {args.config!r})')
        args.config, args.checkpoint = None, args.config
    elif args.data is None and args.config is None:
        parser.error('give CONFIG or --data PATH')
    elif args.data is None and args.checkpoint is None and not os.path.isdir(args.config):
        parser.error('give a CHECKPOINT too, or a work dir as CONFIG')


parse_arguments = parsing(make_parser, set_local_rank, _check_detector)


def run(args: argparse.Namespace) -> None:
    """Evaluate a detector and print the location of detections and pictures.

    Raises:
        GFLDetError: If data, weights or settings are missing, or contradict each other.
    """
    from gfl_det.engine import config_edits, preflight
    from gfl_det.engine.runner import build_runner
    from gfl_det.engine.training.checkpoints import best_checkpoint
    from gfl_det.inference.optimize import optimize_model
    from gfl_det.utils.config import check_split, load_config

    if args.results is not None:
        judge_results(args.results, args.annotations, args.workers)
        return
    if args.data is None:
        cfg = load_config(args.config, args.cfg_options)
        checkpoint = args.checkpoint or str(best_checkpoint(args.config))
    else:
        cfg, checkpoint = judged_config(args, args.checkpoint)
        args.config = str(work_dir_of(args))
    check_split(cfg, 'test')
    config_edits.set_work_dir(cfg, args.work_dir, args.config)
    cfg.load_from = checkpoint
    preflight.check_testing(cfg)
    if args.classwise:
        config_edits.list_classes_apart(cfg)
    if args.resamples:
        config_edits.resample_metrics(cfg, args.resamples)
    if args.show_dir:
        config_edits.draw_into(cfg, args.show_dir)
    if args.out:
        config_edits.write_results(cfg, args.out)
    if args.tta:
        config_edits.use_test_time_augmentation(cfg)
    runner = build_runner(cfg, args.launcher, None if args.verbose else 'test')
    if args.optimize:
        optimize_model(runner, args.optimize)
    runner.test()
    tell_outputs(args.out, args.show_dir)


def judge_results(results: str, annotations: str, workers: int = 1) -> None:
    """Print COCO's AP and calibration metrics of a result folder of ``gfl-det infer-many``.

    Args:
        results: The folder.
        annotations: COCO file of the same images.
        workers: Processes that match.

    Raises:
        DataError: If the folder has no results, or results for other images.
    """
    from gfl_det.evaluation.detections import gts_of_table, read_annotations
    from gfl_det.evaluation.evaluate import format_metrics
    from gfl_det.evaluation.parts import evaluate_parts
    from gfl_det.inference.export.onnx_file import require

    require('pyarrow')
    from gfl_det.inference.shards import ResultFolder, read_parts

    table = read_annotations(annotations)
    gts, parts = gts_of_table(table), read_parts(results, table)
    del table  # a gigabyte for millions of boxes
    metrics = evaluate_parts(parts, gts, workers=workers)
    print(format_metrics(metrics))
    totals = (ResultFolder(results).manifest() or {}).get('totals')
    if totals:
        read = totals['images'] - totals['failures']
        print(f'{read:,} images were detected in, {len(gts.image_ids):,} are annotated')
        if read < len(gts.image_ids):
            print(
                f'warning: gt boxes of the other {len(gts.image_ids) - read:,} annotated images '
                f'count as missed; {totals["failures"]:,} images could not be read.',
                file=sys.stderr,
            )


def tell_outputs(out: str | None, show_dir: str | None) -> None:
    """Print where a test run has written detections and pictures."""
    from mmengine.dist import get_world_size, is_main_process

    from gfl_det.engine import config_edits

    if not is_main_process():
        return
    if out:
        config_edits.settle_results(out)
        print(f'detections: {out}')
    if show_dir:
        number = sum(path.is_file() for path in Path(show_dir).iterdir())
        share = ', of the images of the first process' if get_world_size() > 1 else ''
        print(f'pictures: {show_dir} ({number} files{share})')
