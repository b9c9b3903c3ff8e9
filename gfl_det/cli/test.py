"""``gfl-det test``: test a detector, print the COCO table, write detections and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from gfl_det.cli.arguments import add_checkpoint, add_optimize, parsing
from gfl_det.cli.train import add_runner_arguments, set_local_rank


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Test a detector: print the COCO table, write detections and pictures.',
    )
    add_runner_arguments(parser)
    add_checkpoint(parser)
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='draw every tested image into this folder: gt beside prediction, soft edges',
    )
    parser.add_argument(
        '--out', metavar='FILE', help='write detections: .pkl (samples) or .json (COCO results)'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_optimize(parser)
    parser.add_argument('--classwise', action='store_true', help='print the AP of each class too')
    return parser


parse_arguments = parsing(make_parser, set_local_rank)


def run(args: argparse.Namespace) -> None:
    """Test, and say where detections and pictures are.

    Raises:
        GFLDetError: Data, weights or settings are missing, or contradict each other.
    """
    from gfl_det.engine import config_edits, preflight
    from gfl_det.engine.runner import build_runner
    from gfl_det.inference.optimize import optimize_model
    from gfl_det.utils.config import load_config

    cfg = load_config(args.config, args.cfg_options)
    config_edits.set_work_dir(cfg, args.work_dir, args.config)
    cfg.load_from = args.checkpoint
    preflight.check_testing(cfg)
    if args.classwise:
        config_edits.list_classes_apart(cfg)
    if args.show_dir:
        config_edits.draw_into(cfg, args.show_dir)
    if args.out:
        config_edits.write_results(cfg, args.out)
    if args.tta:
        config_edits.use_test_time_augmentation(cfg)
    runner = build_runner(cfg, args.launcher)
    if args.optimize:
        optimize_model(runner, args.optimize)
    runner.test()
    tell_outputs(args.out, args.show_dir)


def tell_outputs(out: str | None, show_dir: str | None) -> None:
    """Say where a test run has put detections and pictures."""
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
