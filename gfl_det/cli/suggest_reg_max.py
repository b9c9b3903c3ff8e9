"""Command ``gfl-det suggest-reg-max``: suggest reg_max and a pyramid for a data set."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gfl_det.cli.arguments import add_seed, amount, count, parsing, share
from gfl_det.cli.own_data import add_own_data, one_of, planned_config
from gfl_det.errors import ConfigError
from gfl_det.utils.choices import AdviceLimits
from gfl_det.utils.files import make_folder, write_json

if TYPE_CHECKING:
    from gfl_det.engine.reach.advice import Advice
    from gfl_det.engine.reach.measure import PriorPyramid, Resizing
    from gfl_det.models.assigners import ATSSAssigner

SHOWN = 33  # values of reg_max, from 2 on
LEAST = 1e-5  # share drawn instead of 0 on a logarithmic axis


def draw(advice: Advice, path: Path) -> None:
    """Plot clipped positives by reg_max and level, and unassigned gt boxes by size, as a PNG."""
    from gfl_det.visualization.charts import figure

    drawing = figure(13, 4.2)
    axes = drawing.subplots(1, 3)
    _clipped(axes[0], advice)
    _sizes(axes[1], advice)
    _tried(axes[2], advice)
    drawing.savefig(path, dpi=110)


def _clipped(axes: Any, advice: Advice) -> None:
    values = range(2, SHOWN)
    levels = advice.now.pyramid.strides
    for level, stride in enumerate(levels):
        if advice.now.needed[level].sum():
            shares = [max(LEAST, advice.now.clipped(n)[level]) for n in values]
            axes.plot(values, shares, label=f'stride {stride}')
    everything = [max(LEAST, advice.now.clipped_of_all(n)) for n in values]
    axes.plot(values, everything, 'k', lw=2.5, label='all levels')
    axes.axhline(advice.limits.clipped, color='grey', ls=':')
    axes.axvline(advice.reg_max, color='grey', ls='--')
    axes.set(
        yscale='log',
        ylim=(LEAST, 1.2),
        xlabel='reg_max',
        ylabel='share of positives',
        title=f'Positives with an edge beyond reg_max\n(strides {" ".join(map(str, levels))})',
    )
    axes.legend(fontsize=8)


def _sizes(axes: Any, advice: Advice) -> None:
    names = [f'{row.low:g}' for row in advice.sizes]
    places = range(len(names))
    number = sum(row.gts for row in advice.sizes)
    shares = [row.gts / number for row in advice.sizes]
    axes.bar(places, shares, color='lightgrey', label='of all gt boxes')
    axes.plot(
        places, [row.unassigned for row in advice.sizes], 'o-', c='C3', label='without a positive'
    )
    axes.set_xticks(places, names)
    axes.set(
        ylim=(0, 1.05),
        xlabel='size from, px after resizing (square root of the area)',
        ylabel='share',
        title='Gt boxes by size, and those without a positive',
    )
    axes.legend(fontsize=8)


def _tried(axes: Any, advice: Advice) -> None:
    by_strides: dict[tuple[int, ...], list] = {}
    for each in advice.candidates:
        by_strides.setdefault(each.pyramid.strides, []).append(each)
    for strides, tried in by_strides.items():
        tried = sorted(tried, key=lambda each: each.pyramid.scale)
        scales = [each.pyramid.scale for each in tried]
        label = f'{" ".join(map(str, strides))} ({tried[0].cells:.2f} x cells)'
        axes.plot(scales, [100 * each.unassigned for each in tried], 'o-', ms=4, label=label)
        if strides[-1] != advice.now.pyramid.strides[-1]:
            continue  # these points coincide with those without the coarser level: label once
        for each in tried:
            place = (each.pyramid.scale, 100 * each.unassigned)
            above = dict(xytext=(0, 4), textcoords='offset points')
            axes.annotate(each.reg_max, place, fontsize=7, **above)
    chosen = advice.chosen
    axes.plot(chosen.pyramid.scale, 100 * chosen.unassigned, 'k*', ms=14, label='suggested')
    axes.axhline(100 * advice.limits.unassigned, color='grey', ls=':')
    axes.set(
        xlabel='anchor scale, strides',
        ylabel='gt boxes without a positive, %',
        title='Pyramids tried, with the reg_max they need',
    )
    axes.legend(fontsize=8)


EPILOG = """\
Priors and assigner are those of the training: a positive is a prior that ATSS assigns to a box, and
an edge is clipped if its distance from that prior exceeds reg_max strides of its level. The
suggestion is the smallest change that satisfies --max-bare and --max-clipped."""


class Setting(NamedTuple):
    """Settings of a detector that determine its assignment on a data set."""

    pyramid: PriorPyramid
    reg_max: int
    assigner: ATSSAssigner
    resizing: Resizing
    classes: list[str] | None
    warnings: list[str]


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Suggest reg_max, strides and anchor scale for your own boxes.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'annotations', nargs='?', metavar='ANNOTATIONS', help='COCO JSON of the boxes'
    )
    add_own_data(parser)
    parser.add_argument(
        '--config',
        metavar='CONFIG',
        help='take image size, strides, anchor scale, reg_max, top k and classes from this config',
    )
    size = parser.add_argument_group('the detector, in place of what the config says')
    size.add_argument(
        '--scale',
        type=count,
        nargs=2,
        metavar=('W', 'H'),
        help='size in px that images are fitted into, as by mmdet (keep_ratio); default: unresized',
    )
    size.add_argument(
        '--strides', type=count, nargs='+', metavar='S', help='one per level (8 16 32 64 128)'
    )
    size.add_argument(
        '--anchor-scale', type=amount, metavar='X', help='side of the priors in strides (8)'
    )
    size.add_argument('--reg-max', type=count, metavar='N', help='reg_max to judge (16)')
    size.add_argument('--topk', type=count, metavar='K', help='candidates per level of ATSS (9)')
    size.add_argument(
        '--pad', type=count, metavar='PX', help='images are padded to multiples of this (32)'
    )
    limits = parser.add_argument_group('limits of the suggestion')
    default = AdviceLimits()
    limits.add_argument(
        '--max-bare',
        type=share,
        default=default.unassigned,
        metavar='SHARE',
        help='share of gt boxes without a positive (%(default)s)',
    )
    limits.add_argument(
        '--max-clipped',
        type=share,
        default=default.clipped,
        metavar='SHARE',
        help='share of positives with an edge beyond reg_max (%(default)s)',
    )
    parser.add_argument(
        '--sample',
        type=count,
        default=20000,
        metavar='N',
        help='number of boxes on which other pyramids are tried (%(default)s)',
    )
    add_seed(parser, 'seed of the sample and of random sizes')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/reach'),
        metavar='DIR',
        help='folder of reach.json and reach.png (%(default)s)',
    )
    return parser


parse_arguments = parsing(make_parser, check=partial(one_of, name='annotations'))


def run(args: argparse.Namespace) -> None:
    """Measure, print the results, and write ``reach.json`` and ``reach.png``.

    Raises:
        GFLDetError: If the annotations or the config cannot be used.
    """
    import numpy as np

    from gfl_det.engine.reach.advice import advise, as_dict, format_text
    from gfl_det.engine.reach.measure import read_boxes
    from gfl_det.utils.console import ProgressCalls

    if args.data is not None:
        args.config = args.config or planned_config(args)
        args.annotations = annotations_of(args.config)
    setting = read_setting(args)
    make_folder(args.out)
    random = np.random.default_rng(args.seed)
    print(f'reading {args.annotations}', file=sys.stderr, flush=True)
    boxes = read_boxes(args.annotations, setting.resizing, random, setting.classes)
    images = len(boxes.image_wh)
    print(f'{args.annotations}: {len(boxes.xyxy):,} boxes of {images:,} images, ', end='')
    print(f'{boxes.num_classes} classes, {setting.resizing}')
    for warning in (boxes.dropped, *setting.warnings):
        if warning:
            print(f'warning: {warning}', file=sys.stderr)
    with ProgressCalls() as told:
        advice = advise(
            boxes,
            setting.pyramid,
            setting.assigner,
            reg_max=setting.reg_max,
            limits=AdviceLimits(args.max_bare, args.max_clipped),
            sample=args.sample,
            seed=args.seed,
            report=told,
        )
    print(format_text(advice))
    write_json(args.out / 'reach.json', as_dict(advice), indent=1)
    draw(advice, args.out / 'reach.png')
    print(f'written: {args.out / "reach.json"}, {args.out / "reach.png"}')


def annotations_of(config: str) -> str:
    """Return the training annotation file of a config.

    Raises:
        ConfigError: If the config has none.
    """
    from gfl_det.utils.config import annotation_path, datasets_of, load_config

    paths = [annotation_path(each) for each in datasets_of(load_config(config), 'train')]
    if not paths or not paths[0]:
        raise ConfigError(f'{config} names no annotation file to train on: set ann_file.')
    return paths[0]


def read_setting(args: argparse.Namespace) -> Setting:
    """Take each value from its option, else from the config, else from the paper.

    Raises:
        ConfigError: If the config has no head with a pyramid of square priors, or no resizing.
    """
    from gfl_det.engine.preflight.agreement import class_names
    from gfl_det.engine.reach.measure import (
        DEFAULTS,
        LARGEST,
        PriorPyramid,
        Resizing,
        assigner_of,
        head_of,
        resizing_of,
    )
    from gfl_det.models.assigners import ATSSAssigner
    from gfl_det.utils.config import datasets_of, load_config

    found: dict[str, Any] = dict(DEFAULTS)
    resizing, classes = Resizing(), None
    warnings: list[str] = []
    options: dict[str, Any] = {}
    if args.config:
        cfg = load_config(args.config)
        found.update(head_of(cfg.model, args.config))
        try:
            options = assigner_of(cfg.model)
        except ConfigError as other:
            warnings.append(f'{other}: the figures are those of ATSS')
        found['topk'] = options.pop('topk', found['topk'])
        datasets = datasets_of(cfg, 'train')
        if datasets and not args.scale:
            resizing, steps = resizing_of(datasets[0].get('pipeline', []))
            warnings += _not_followed(steps)
        classes = class_names(datasets[0]) if datasets else None
    given = {key: getattr(args, key) for key in DEFAULTS if getattr(args, key) is not None}
    found.update(given)
    if args.scale:
        resizing = Resizing((tuple(args.scale),))
    strides = tuple(sorted(found['strides']))
    if found['anchor_scale'] <= 0 or not 2 <= found['reg_max'] < LARGEST:
        raise ConfigError(f'Give an anchor scale above 0 and a reg_max of 2 to {LARGEST - 1}.')
    pyramid = PriorPyramid(strides, float(found['anchor_scale']), found['pad'])
    assigner = ATSSAssigner(found['topk'], **options)
    return Setting(pyramid, found['reg_max'], assigner, resizing, classes, warnings)


def _not_followed(steps: list[str]) -> list[str]:
    if not steps:
        return []
    return [
        f'{", ".join(steps)} of the training pipeline move boxes further, which is not followed: '
        'what is measured are the boxes of whole images'
    ]
