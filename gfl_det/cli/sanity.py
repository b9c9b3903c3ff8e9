"""Command ``gfl-det sanity``: data checks and an overfit check on a few pictures."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from gfl_det.cli.arguments import CONFIG_HELP, add_cfg_options, count, parsing
from gfl_det.cli.own_data import add_own_data, one_of, planned_config
from gfl_det.errors import GFLDetError
from gfl_det.utils.files import check_writable, write_json

if TYPE_CHECKING:
    from mmengine.config import Config

    from gfl_det.engine.sanity.overfit import OverfitCurve, Suspect

LOOKED_AT = 64  # pictures whose boxes and labels are checked without a model
TRIAL_STEPS = 60  # steps with another learning rate if the config's fails
FORMAT_CODES = ('boxes.corners', 'boxes.fractions')


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Overfit check: train on a few pictures until the detector reproduces them. If '
        'that fails, or if boxes or labels do not match the pictures, report which part looks '
        'wrong.',
        epilog='Exit status: 0, passed; 1, something looks wrong.',
    )
    parser.add_argument('config', nargs='?', metavar='CONFIG', help=CONFIG_HELP)
    add_own_data(parser)
    parser.add_argument(
        '--images', type=count, default=8, metavar='N', help='number of pictures (%(default)s)'
    )
    parser.add_argument(
        '--steps',
        type=count,
        default=200,
        metavar='N',
        help='maximum number of steps (%(default)s)',
    )
    parser.add_argument(
        '--device', metavar='NAME', help='cpu, cuda, cuda:1 ...; default: the GPU, if present'
    )
    parser.add_argument('--from-scratch', action='store_true', help='random weights, no download')
    parser.add_argument('--json', metavar='FILE', help='write losses, AP and suspects')
    add_cfg_options(parser)
    return parser


parse_arguments = parsing(make_parser, check=partial(one_of, name='config'))


def run(args: argparse.Namespace) -> int:
    """Check the data, run the overfit check, print the diagnosis, and return the exit status.

    Raises:
        GFLDetError: If data or weights are missing, or contradict the config.
    """
    from mmengine.registry import DefaultScope

    from gfl_det.utils.config import load_config

    if args.data is not None:
        args.config = planned_config(args)
    cfg = load_config(args.config, args.cfg_options)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        return _run(cfg, args)


def _run(cfg: Config, args: argparse.Namespace) -> int:
    import torch

    from gfl_det.engine import config_edits
    from gfl_det.engine.preflight.agreement import check_classes, check_weights
    from gfl_det.engine.preflight.data import check_data
    from gfl_det.engine.sanity.evidence import Examples, build_dataset, load
    from gfl_det.engine.sanity.overfit import overfit, suspects_of_curve

    begin, begin_busy = time.monotonic(), time.process_time()
    if args.json:
        check_writable(args.json)
    if args.from_scratch:
        config_edits.train_from_scratch(cfg)
    check_classes(cfg, ['train'])
    check_data(cfg, ['train'])
    check_weights(cfg)
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    suspects = look_at_data(cfg, args.images)
    batch = load(build_dataset(cfg), args.images)
    boxes = sum(map(len, Examples.of(batch).labels))
    print(f'{len(batch["inputs"])} pictures with {boxes} boxes, {args.steps} steps at most')
    curve = overfit(cfg, batch, args.steps, device, progress=_show)
    if not curve.reached:
        slower, faster = (
            _try_rate(cfg, batch, min(args.steps, TRIAL_STEPS), device, factor)
            if curve.rate > 0  # a multiple of 0 is 0
            else None
            for factor in (0.1, 10.0)
        )
        suspects += suspects_of_curve(curve, slower, faster)
    seconds = time.monotonic() - begin
    print_outcome(curve, suspects)
    print(f'{seconds:.0f} s, {time.process_time() - begin_busy:.0f} s of processor time')
    if args.json:
        content = dict(curve=curve._asdict(), suspects=suspects, seconds=round(seconds, 1))
        write_json(args.json, content, indent=1)
    return int(bool(suspects) or not curve.reached)


def look_at_data(cfg: Config, fewest: int) -> list[Suspect]:
    """Return suspects found in the data before a model is built.

    Args:
        cfg: Config of the training.
        fewest: Minimum number of pictures to check.
    """
    from gfl_det.datasets import coco
    from gfl_det.datasets.checks.check import AnnotationSource, check_annotations_alone, read
    from gfl_det.engine.sanity.evidence import (
        Examples,
        box_chance,
        build_dataset,
        label_chance,
        load,
    )
    from gfl_det.engine.sanity.overfit import suspects_of_data
    from gfl_det.utils.config import annotation_path, datasets_of, is_remote

    format_fault = None
    for dataset in datasets_of(cfg, 'train'):
        path = annotation_path(dataset)
        if path and path.endswith('.json') and not is_remote(path):
            content = read(path)
            found = check_annotations_alone(AnnotationSource('train', path), content)
            coco.keep(path, content)
            faults = (each.text for each in found if each.code in FORMAT_CODES)
            format_fault = format_fault or next(faults, None)
    examples = Examples.of(load(build_dataset(cfg), max(LOOKED_AT, fewest)))
    chances = box_chance(examples), label_chance(examples)
    for name, chance in zip(('boxes', 'labels'), chances):
        text = 'too few to tell' if chance is None else f'chance does as well in {chance:.1%}'
        print(f'{name} of {len(examples.pictures)} pictures against their look: {text}')
    return suspects_of_data(format_fault, *chances)


def print_outcome(curve: OverfitCurve, suspects: Sequence[Suspect]) -> None:
    """Print the losses before and after the overfit check, the verdict, and each suspect."""
    from gfl_det.engine.sanity.overfit import verdict
    from gfl_det.utils.console import print_table

    first, last = curve.losses[0], curve.losses[-1]
    highest = {name: max(step[name] for step in curve.losses) for name in first}
    rows = [
        (name, f'{first[name]:.4f}', f'{highest[name]:.4f}', f'{last[name]:.4f}') for name in first
    ]
    print_table('', ('loss', 'first', 'highest', 'last'), rows)
    if curve.scores is not None:
        print(f'AP {curve.scores.ap:.3f}, class-agnostic {curve.scores.ap_any_class:.3f}')
    print(verdict(curve, suspects))
    for suspect in suspects:
        print(f'  {suspect.part}: {suspect.reason}')


def _try_rate(
    cfg: Config, batch: dict, steps: int, device: str, factor: float
) -> OverfitCurve | None:
    from gfl_det.engine.sanity.overfit import overfit

    print(f'not overfitted: trying {factor:g} times the learning rate', file=sys.stderr)
    try:
        return overfit(cfg, batch, steps, device, factor)
    except GFLDetError:
        raise
    except (RuntimeError, ValueError):  # overflowing weights cause various errors
        return None


def _show(step: int, losses: dict[str, float]) -> None:
    terms = ', '.join(f'{name} {value:.4f}' for name, value in losses.items())
    print(f'step {step + 1}: {terms}', file=sys.stderr, flush=True)
