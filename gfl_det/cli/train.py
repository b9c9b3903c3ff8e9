"""Command ``gfl-det train``: train a detector."""

from __future__ import annotations

import argparse
import os
from functools import partial

from gfl_det.cli.arguments import CONFIG_HELP, add_cfg_options, parsing
from gfl_det.cli.own_data import add_own_data, one_of, planned_config
from gfl_det.utils.choices import BACKENDS, GUARDS, LAUNCHERS


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(prog=prog, description='Train a detector.')
    add_runner_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from CHECKPOINT, or from the newest valid one in the work dir',
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU'
    )
    parser.add_argument(
        '--channels-last',
        action='store_true',
        help='use the channels-last memory format, in which most convolutions are faster',
    )
    _add_scaling(parser)
    parser.add_argument(
        '--loss-guard',
        choices=GUARDS,
        default=GUARDS[0],
        help='action at an infinite or NaN loss or gradient: stop (default) or skip the step; both '
        'write a file for `gfl-det replay`',
    )
    parser.add_argument(
        '--from-scratch',
        action='store_true',
        help='start from random weights: no download, no frozen layers; needs a longer schedule',
    )
    parser.add_argument(
        '--pictures',
        nargs='?',
        type=int,
        const=8,
        metavar='N',
        help='draw the same N validation images (8) after each validation',
    )
    parser.add_argument(
        '--log-to',
        nargs='+',
        choices=list(BACKENDS),
        default=[],
        help='also send losses, metrics and pictures there',
    )
    return parser


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments shared by training and testing: config, work dir and launcher."""
    parser.add_argument('config', nargs='?', metavar='CONFIG', help=CONFIG_HELP)
    add_own_data(parser)
    parser.add_argument('--work-dir', metavar='DIR', help='folder for logs and checkpoints')
    add_cfg_options(
        parser,
        'override values of the config, as in data_root=DIR train_dataloader.batch_size=4',
    )
    parser.add_argument(
        '--verbose',
        action='store_true',
        help='print everything that goes to the log file',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='job launcher')
    # torch.distributed.launch passes the local rank, torchrun sets the environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def _add_scaling(parser: argparse.ArgumentParser) -> None:
    scaling = parser.add_mutually_exclusive_group()
    scaling.add_argument(
        '--no-scale-lr',
        dest='scale_lr',
        action='store_false',
        help='keep the learning rate of the config; by default it is scaled by the batch size over '
        'the one that it was set for',
    )
    scaling.add_argument(
        '--auto-scale-lr',
        dest='scale_lr',
        action='store_true',
        help='the default; accepted for compatibility',
    )


def set_local_rank(args: argparse.Namespace) -> None:
    """Set ``LOCAL_RANK`` for mmengine if the launcher does not."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


parse_arguments = parsing(make_parser, set_local_rank, partial(one_of, name='config'))


def run(args: argparse.Namespace) -> None:
    """Train a detector.

    Raises:
        GFLDetError: If data, weights or settings are missing, or contradict each other.
    """
    import torch

    from gfl_det.cli.main import tell
    from gfl_det.engine import config_edits, preflight, runner
    from gfl_det.utils.config import check_split, load_config

    if args.data is not None:
        args.config = planned_config(args, anew=args.resume is None)
    cfg = load_config(args.config, args.cfg_options)
    check_split(cfg, 'train')
    config_edits.set_work_dir(cfg, args.work_dir, args.config)
    if args.amp:
        config_edits.use_amp(cfg, has_gpu=torch.cuda.is_available())
    if args.channels_last:
        config_edits.use_channels_last(cfg)
    if args.from_scratch:
        config_edits.train_from_scratch(cfg)
        print(config_edits.SCRATCH_NOTE)
    config_edits.log_assignment(cfg)
    if args.pictures is not None:
        config_edits.draw_sample(cfg, args.pictures)
    config_edits.log_to(cfg, args.log_to)
    config_edits.protect(cfg, args.loss_guard)
    facts = config_edits.resume(cfg, args.resume)
    facts.append(config_edits.scale_learning_rate(cfg, args.launcher, args.scale_lr))
    preflight.check_training(cfg)
    tell(facts)
    runner.build_runner(cfg, args.launcher, None if args.verbose else 'train').train()
