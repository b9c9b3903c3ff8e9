"""Coverage of edge intervals, as predicted and calibrated on other images, of trained detectors.

    python -m projects.calibration_study.edge_coverage FILE.json --figure FILE.png
    python -m projects.calibration_study.edge_coverage FILE.json --checkpoint FILE [--config CONFIG]
        --judged JSON DIR [--fitted JSON DIR] [--halvings 5]

A calibrator is fitted on one split and judged on another, or on random halves of one split. With
one pair of splits the shares have .95 intervals of a bootstrap over images; halves share images, so
that the spread over them is given. Kinds of intervals that do without the distributions are
compared in 50 halvings of the judged split, each fitted on one half and judged on the other.
Results go to FILE.json; tables and figure are made from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gfl_det.calibration.intervals import (
    MatchedEdges,
    compare_intervals,
    fit_factors,
    fit_whole_boxes,
)
from gfl_det.calibration.splits import split_images
from gfl_det.cli import main as cli
from gfl_det.cli.arguments import count
from gfl_det.cli.intervals import IOU, JOINT_LEVEL, SHOWN, draw
from gfl_det.errors import ConfigError
from gfl_det.evaluation.bootstrap import image_weights
from gfl_det.evaluation.detections import read_json
from gfl_det.inference.coverage import Coverage, box_coverage, coverage, judge, read_split
from gfl_det.utils.files import check_writable, file_sum, write_json
from projects.calibration_study.tables import fraction, markdown, paired, spread
from projects.provenance import provenance

RESAMPLES = 2000
KIND_SPLITS = 50
DISTRIBUTIONS = 'distributions'
KIND_NAMES = {
    DISTRIBUTIONS: DISTRIBUTIONS,
    'constant': 'a constant per side',
    'share of the side': 'a constant share of the side',
    'size group': 'a constant per size of box',
}


def judge_part(fitted: MatchedEdges, judged: MatchedEdges, classes: Sequence[str]) -> dict:
    """Coverage on the judged edges by the factors of the fitted ones, over levels and groups."""
    levels, factors = fit_factors(fitted)
    after = coverage(judged, levels, factors)
    low, high = share_interval(judged, levels, factors)
    groups = box_coverage(judged, fit_whole_boxes(fitted, classes), JOINT_LEVEL, len(fitted))
    return dict(
        fitted=len(fitted),
        judged=len(judged),
        own=_plain(coverage(judged, levels)),
        calibrated=_plain(after),
        low=low,
        high=high,
        groups=[each._asdict() for each in groups],
    )


def _plain(found: Coverage) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in found._asdict().items()}


def share_interval(
    judged: MatchedEdges,
    levels: Sequence[float],
    factors: Sequence[Sequence[float]],
    resamples: int = RESAMPLES,
) -> tuple[list[float], list[float]]:
    """The .95 intervals of the shares of gt edges inside, by level; images are drawn anew."""
    assert judged.images is not None  # set by detectors
    image = np.unique(judged.images.numpy(), return_inverse=True)[1]
    number = int(image.max()) + 1
    boxes = np.bincount(image, minlength=number)
    inside = np.stack(
        [
            np.bincount(image, judged.intervals(*each).contain(judged.gts).float().mean(1).numpy())
            for each in zip(levels, factors)
        ]
    )
    shares = np.concatenate(
        [drawn @ inside.T / (drawn @ boxes)[:, None] for drawn in image_weights(number, resamples)]
    )
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    return low.tolist(), high.tolist()


def halves(edges: MatchedEdges, chosen: Sequence[np.ndarray]) -> Iterator[MatchedEdges]:
    """Edges of each set of images."""
    assert edges.images is not None  # set by detectors
    for images in chosen:
        yield edges.take(np.flatnonzero(np.isin(edges.images.numpy(), images)))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Detect in the splits, fit and judge."""
    from gfl_det.inference import GFLInferencer  # loads mmdet

    detector = GFLInferencer(args.checkpoint, args.config, level=None, distributions=True)
    classes = detector.classes
    split = read_split(*args.judged)
    judged = judge(detector, split, IOU).edges
    if args.fitted:
        other = read_split(*args.fitted)
        shared = len(set(other.gts.image_keys) & set(split.gts.image_keys))
        if shared:
            raise ConfigError(f'{shared} images of --fitted are among those of --judged.')
        parts = [judge_part(judge(detector, other, IOU).edges, judged, classes)]
    else:
        cuts = [split_images(split.gts, seed) for seed in range(args.halvings)]
        parts = [judge_part(*halves(judged, each), classes) for each in cuts]
    return dict(
        checkpoint=file_sum(args.checkpoint),
        images=len(split.files),
        parts=parts,
        kinds=judge_kinds(judged),
    )


def judge_kinds(edges: MatchedEdges, splits: int = KIND_SPLITS) -> dict[str, list[dict]]:
    """Kinds of intervals in random halvings of the images: measures of each halving."""
    found = [compare_intervals(edges, JOINT_LEVEL, 1, seed) for seed in range(splits)]
    return {name: [each[name]._asdict() for each in found] for name in KIND_NAMES}


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Tables of a file of results, as Markdown: levels, groups, kinds."""
    return dict(
        levels=_level_table(content['parts']),
        groups=_group_table(content['parts']),
        kinds=_kind_table(content['kinds']),
    )


def _level_table(parts: Sequence[dict[str, Any]]) -> str:
    levels = min((part['own']['levels'] for part in parts), key=len)
    rows = []
    for level in SHOWN:
        if level not in levels:  # a part was fitted on too few boxes
            continue
        place = levels.index(level)
        own, after = ([part[key] for part in parts] for key in ('own', 'calibrated'))
        sides = np.mean([each['share_of_sides'][place] for each in after], axis=0)
        share = spread([each['share'][place] for each in after])
        if len(parts) == 1:
            share += ' [{}, {}]'.format(
                *(fraction(parts[0][end][place]) for end in ('low', 'high'))
            )
        widths = [np.mean([each['width'][place] for each in found]) for found in (own, after)]
        rows.append(
            [
                fraction(level, 2),
                spread([each['share'][place] for each in own]),
                f'**{share}**',
                *map(fraction, sides),
                spread([each['share_of_boxes'][place] for each in after]),
                *(fraction(float(width), 1) for width in widths),
            ]
        )
    head = ['level', 'own', 'calibrated', 'left', 'top', 'right', 'bottom', 'box']
    return markdown([*head, 'width own', 'width calibrated'], rows, words=0)


def _group_table(parts: Sequence[dict[str, Any]]) -> str:
    """Whole boxes by group; of random halves, whose groups differ, over all boxes alone."""
    head = ['group', 'fitted', 'judged', 'boxes inside']
    if len(parts) > 1:
        over_all = [part['groups'][0] for part in parts]
        fitted, judged, width = (
            float(np.mean([each[key] for each in over_all]))
            for key in ('fitted', 'judged', 'width')
        )
        share = spread([each['share'] for each in over_all])
        row = ['all', f'{fitted:,.0f}', f'{judged:,.0f}', share, f'{width:.1f}']
        return markdown([*head, 'px an edge'], [row])
    rows = []
    for each in parts[0]['groups']:
        counts = [f'{each[key]:,}' for key in ('fitted', 'judged')]
        ends = [
            f'{fraction(low)} to {fraction(high)}'
            for low, high in ((each['low'], each['high']), each['expected'])
        ]
        rows.append(
            [each['group'], *counts, fraction(each['share']), *ends, f'{each["width"]:.1f}']
        )
    return markdown([*head, '.95 interval over images', 'Beta-binomial range', 'px an edge'], rows)


def _kind_table(kinds: dict[str, list[dict[str, float]]]) -> str:
    """Means over the halvings; differences by Nadeau and Bengio (2003)."""
    digits = {'coverage': 3, 'width': 2, 'score': 2, 'box_coverage': 3, 'box_width': 2}
    found = {
        key: {name: np.array([each[name] for each in rows]) for name in digits}
        for key, rows in kinds.items()
    }
    rows = []
    for key, name in KIND_NAMES.items():
        cells = [fraction(found[key][column].mean(), places) for column, places in digits.items()]
        for place, column in enumerate(digits) if key != DISTRIBUTIONS else ():
            if column in ('score', 'box_width'):
                # As many images are judged as are fitted on.
                more = paired(found[key][column] - found[DISTRIBUTIONS][column], ratio=1)
                cells[place] += f', {more.mean:+.2f} [{more.low:+.2f}, {more.high:+.2f}]'
        rows.append([name, *cells])
    score, wide = (f'{name}, px, more [.95]' for name in ('interval score', 'width for boxes'))
    head = ['intervals from', 'edges inside', 'width, px', score, 'boxes inside', wide]
    return markdown(head, rows)


def draw_levels(content: dict[str, Any], path: Path) -> None:
    """Draw coverage over level, as predicted and calibrated; means over the parts."""

    def mean(key: str) -> Coverage:
        found = [part[key] for part in content['parts']]
        reached = min(len(each['levels']) for each in found)
        of_parts = {name: [each[name][:reached] for each in found] for name in Coverage._fields}
        return Coverage(**{name: np.mean(values, 0) for name, values in of_parts.items()})

    draw(mean('own'), mean('calibrated'), path)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('file', type=Path, metavar='FILE.json', help='what was measured')
    parser.add_argument('--figure', type=Path, metavar='FILE.png', help='draw coverage over level')
    parser.add_argument('--checkpoint', metavar='FILE', help='measure this detector first')
    parser.add_argument('--config', help='of the detector, if the checkpoint has none')
    pair = dict(nargs=2, metavar=('JSON', 'DIR'))
    parser.add_argument('--judged', **pair, help='annotations and images to judge on')
    parser.add_argument('--fitted', **pair, help='the same to fit on (halves of --judged)')
    parser.add_argument('--halvings', type=count, help='without --fitted: random halves (5)')
    args = parser.parse_args(argv)
    names = ('config', 'judged', 'fitted', 'halvings')
    given = [name for name in names if getattr(args, name) is not None]
    if given and not args.checkpoint:
        parser.error(f'--{given[0]} needs a detector: give --checkpoint')
    if args.checkpoint and not args.judged:
        parser.error('--checkpoint needs data: give --judged JSON DIR')
    if args.fitted and args.halvings is not None:
        parser.error('--halvings are of one split: leave --fitted out')
    args.halvings = 5 if args.halvings is None else args.halvings
    return args


def main() -> None:
    """Measure if a detector is given; print the tables, and draw."""
    args = parse_arguments()
    if args.figure:
        check_writable(args.figure)
    if args.checkpoint:
        check_writable(args.file)
        code = provenance()
        write_json(args.file, measure(args) | code, indent=1)
    content = read_json(args.file)
    if args.figure:
        draw_levels(content, args.figure)
    print(*tables(content).values(), sep='\n\n')


if __name__ == '__main__':
    cli.run(main)
