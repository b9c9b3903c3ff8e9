"""Errors put into held-out labels: how well does each method find them?

    python -m projects.label_errors.study --data NAME CHECKPOINT ANNOTATIONS IMAGES [--data ...]
        [--config NAME=CONFIG] [--seeds 10] [--kinds class missing] [--out DIR]

Several annotation files of one folder of images are joined by commas. The detector runs once per
data set. 5 % of the labels get errors of each kind, the kinds together or one at a time, edges
moved by 15 and by 25 % of the side; cleanlab, which takes longer than all else, where they are
together. Each method ranks labels for the kinds asked for; average precision counts all errors put
in, also those that no detection is near. Writes one JSON file per data set.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from gfl_det.cli import main as cli
from gfl_det.datasets.table import table_of
from gfl_det.evaluation.detections import gts_from_coco, read_json
from gfl_det.evaluation.label_evidence import (
    Labels,
    UncertainDetections,
    best_of_place,
    image_sizes,
    near_pairs,
)
from gfl_det.utils.files import write_json
from projects.calibration_study.tables import fraction, markdown
from projects.label_errors import methods
from projects.label_errors.spoiling import KINDS, Spoilt, spoil
from projects.provenance import commit, machine

RESULTS = Path(__file__).parent / 'results'
SHARES = (0.15, 0.25)
FIRST = 50


class DataSet:
    """Clean labels and detections of a data set."""

    def __init__(self, dataset: dict[str, Any], found: UncertainDetections) -> None:
        table = table_of(dataset, 'the labels')
        gts = gts_from_coco(dataset)
        kept = ~gts.crowd & (gts.boxes[:, 2:] >= 1).all(1)
        self.labels = Labels(gts.image[kept], gts.label[kept], gts.boxes[kept])
        self.classes, self.images = len(gts.category_ids), len(gts.image_ids)
        self.image_wh, self.found = image_sizes(table), found


def joined(paths: Sequence[str]) -> dict[str, Any]:
    """Annotations of several files, numbered anew."""
    images, annotations = [], []
    for path in paths:
        part = read_json(path)
        first = len(images)
        ids = {each['id']: first + index for index, each in enumerate(part['images'], 1)}
        images += [{**each, 'id': ids[each['id']]} for each in part['images']]
        annotations += [{**each, 'image_id': ids[each['image_id']]} for each in part['annotations']]
    labels = [{**each, 'id': index} for index, each in enumerate(annotations, 1)]
    return dict(images=images, annotations=labels, categories=part['categories'])


def detections(
    checkpoint: str, config: str | None, annotations: Path, images: str, cache: Path
) -> UncertainDetections:
    """Run the detector, or read what it has found before."""
    if cache.is_file():
        with np.load(cache) as arrays:
            return UncertainDetections(*(arrays[name] for name in UncertainDetections._fields))
    from gfl_det.inference import GFLInferencer
    from gfl_det.inference.coverage import detect_unsuppressed, read_split

    detector = GFLInferencer(checkpoint, config, level=None)
    found = detect_unsuppressed(detector, read_split(str(annotations), images))
    np.savez(cache, **found._asdict())
    return found


def average_precision(score: np.ndarray, wrong: np.ndarray, total: int) -> float:
    """Mean over the errors of the precision at each; 0 at those that are no candidates."""
    hit = wrong[np.argsort(-score, kind='stable')]
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    return float((precision * hit).sum() / max(total, 1))


def precision_first(score: np.ndarray, wrong: np.ndarray) -> float:
    """Share of errors among the first ranked."""
    return float(wrong[np.argsort(-score, kind='stable')][:FIRST].sum() / FIRST)


def wrong_candidates(
    kind: str, ranking: methods.Ranking, spoilt: Spoilt, found: UncertainDetections
) -> tuple[np.ndarray, int]:
    """Which candidates of a ranking are errors, and how many errors there are."""
    if kind == 'missing':
        return _refound(ranking, spoilt.dropped, found), len(spoilt.dropped.image)
    if kind == 'duplicate':
        assert ranking.other is not None
        return spoilt.twin[ranking.candidate] == ranking.other, int((spoilt.twin >= 0).sum())
    mask = {'loose': spoilt.loose, 'class': spoilt.swapped, 'spurious': spoilt.spurious}[kind]
    return mask[ranking.candidate], int(mask.sum())


def _refound(ranking: methods.Ranking, dropped: Labels, found: UncertainDetections) -> np.ndarray:
    """The first ranked detection at each missing label, at IoU .5."""
    rows = found.take(ranking.candidate)
    there = Labels(rows.image, rows.label, rows.boxes)
    lost, place, _ = near_pairs(dropped, there, 0.5)
    order = np.lexsort((-ranking.score[place], lost))
    _, first = np.unique(lost[order], return_index=True)
    hit = np.zeros(len(ranking.candidate), bool)
    hit[place[order[first]]] = True
    return hit


def run_seed(
    data: DataSet, share: float, kinds: tuple[str, ...], seed: int, ranked: Sequence[str] = KINDS
) -> list[dict]:
    """Average precision, precision among the first 50 and calibration, by kind and method.

    Errors of all ``kinds`` are put in; those of ``ranked`` are searched for.
    """
    rng = np.random.default_rng(seed)
    spoilt = spoil(data.labels, data.classes, data.image_wh, share, kinds, rng)
    found, labels = data.found, spoilt.labels
    suppressed = best_of_place(found)
    by_method = defaultdict(dict)
    wanted = tuple(kind for kind in kinds if kind in ranked)
    mine = methods.ours(labels, found, data.classes, data.image_wh, wanted, seed)
    for kind, ranking in mine.items():
        by_method[kind]['ours'] = ranking
    sources = [methods.plain(labels, found)]
    if len(kinds) > 1:  # it takes longer than all else together
        sources.append(methods.cleanlab(labels, found, data.classes, data.images))
    for source in sources:
        for kind, rankings in source.items():
            for name, ranking in rankings.items():
                if kind == 'missing':  # these number what NMS leaves
                    ranking = ranking._replace(candidate=suppressed[ranking.candidate])
                by_method[kind][name] = ranking
    rows = []
    for kind in wanted:
        for name, ranking in by_method[kind].items():
            wrong, total = wrong_candidates(kind, ranking, spoilt, found)
            row = dict(
                kind=kind,
                method=name,
                AP=average_precision(ranking.score, wrong, total),
                first=precision_first(ranking.score, wrong),
            )
            if ranking.probability is not None:
                row.update(calibration(ranking.probability, wrong, total))
            rows.append(row)
    return rows


def calibration(probability: np.ndarray, wrong: np.ndarray, total: int) -> dict[str, float]:
    """Expected over real number of errors, ECE in ten bins, Brier score over that of the rate."""
    rate = wrong.mean()
    bins = np.minimum((probability * 10).astype(int), 9)
    gaps = np.bincount(bins, probability - wrong, 10)
    return dict(
        expected=float(probability.sum() / max(total, 1)),
        ece=float(np.abs(gaps).sum() / len(wrong)),
        brier=float(((probability - wrong) ** 2).mean() / max(rate * (1 - rate), 1e-9)),
    )


def run(data: DataSet, seeds: int, ranked: Sequence[str] = KINDS) -> list[dict]:
    """All seeds; the kinds together, and each alone."""
    rows = []
    for share in SHARES:
        settings = [('together', KINDS), *((kind, (kind,)) for kind in ranked)]
        for name, kinds in settings:
            if share != SHARES[0] and (name not in ('together', 'loose') or 'loose' not in ranked):
                continue  # the same as before: no edge is moved
            for seed in range(seeds):
                for row in run_seed(data, share, kinds, seed, ranked):
                    rows.append(dict(share=share, errors=name, seed=seed, **row))
    return rows


def table(results: Sequence[dict], together: bool) -> str:
    """Means over seeds as Markdown, and ours less the best of the others.

    The .95 interval of the difference is that of a paired t-test over seeds, which choose the
    spoilt labels; labels and detector are the same.
    """
    lines = []
    for each in results:
        cells = defaultdict(list)
        for row in each['rows']:
            if (row['errors'] == 'together') == together:
                cells[row['kind'], row['share'], row['method']].append((row['AP'], row['first']))
        for kind, share in dict.fromkeys((key[0], key[1]) for key in cells):
            if kind != 'loose' and share != SHARES[0]:
                continue
            runs = {m: np.array(v) for (k, s, m), v in cells.items() if (k, s) == (kind, share)}
            others = set(runs) - {'ours', 'ratio, one detection'}
            best = max(sorted(others), key=lambda method: runs[method][:, 0].mean())
            mine, other = runs['ours'], runs[best]
            differences = mine[:, 0] - other[:, 0]
            what = f'{kind}, {share:.0%}' if kind == 'loose' else kind
            figures = [*map(fraction, mine.mean(0)), best, *map(fraction, other.mean(0))]
            ratio = f'{mine[:, 0].mean() / other[:, 0].mean():.2f}'
            lines.append([each['data'], what, *figures, ratio, _interval(differences)])
    head = ['data', 'errors', 'AP', 'first 50', 'best other', 'AP', 'first 50', 'ratio']
    head.append('difference of AP')
    return markdown(head, lines, words=2)


def _interval(differences: np.ndarray) -> str:
    """Mean and half-width of its .95 interval by the t distribution."""
    number = len(differences)
    if number < 2:
        return f'{differences.mean():+.3f}'
    half = differences.std(ddof=1) / np.sqrt(number) * t.ppf(0.975, number - 1)
    return f'{differences.mean():+.3f} ± {half:.3f}'


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    names = ('NAME', 'CHECKPOINT', 'ANNOTATIONS', 'IMAGES')
    parser.add_argument('--data', nargs=4, action='append', default=[], metavar=names)
    parser.add_argument('--config', nargs='+', default=[], metavar='NAME=CONFIG')
    parser.add_argument('--seeds', type=int, default=10)
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS, help='searched for')
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder of the JSON files')
    parser.add_argument('--base', type=Path, default=Path('work_dirs/label_errors'))
    parser.add_argument('--table', action='store_true', help='print the tables of what is there')
    return parser.parse_args(argv)


def main() -> None:
    """Measure what is asked for, and print the tables."""
    args = parse_arguments()
    configs = dict(each.split('=', 1) for each in args.config)
    for name, checkpoint, files, images in args.data:
        args.base.mkdir(parents=True, exist_ok=True)
        path = args.base / f'{name}.json'
        dataset = joined(files.split(','))
        write_json(path, dataset)
        cache = args.base / f'{name}.npz'
        found = detections(checkpoint, configs.get(name), path, images, cache)
        data = DataSet(dataset, found)
        facts = dict(
            data=name,
            images=data.images,
            labels=len(data.labels.image),
            classes=data.classes,
            detections=len(found.image),
            seeds=args.seeds,
            commit=commit(),
            machine=machine(),
        )
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / f'{name}.json', dict(facts, rows=run(data, args.seeds, args.kinds)))
        print(f'{name}: {args.out / name}.json', flush=True)
    results = [json.loads(path.read_text()) for path in sorted(args.out.glob('*.json'))]
    print(table(results, together=True), table(results, together=False), sep='\n\n')


if __name__ == '__main__':
    cli.run(main)
