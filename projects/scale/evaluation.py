"""Time and memory of judging a million images part by part.

    python -m projects.scale.evaluation WORK_DIR --images 1000000 --classes 80 --out FILE.json

Annotations and detections are drawn at random and kept in WORK_DIR, in the files that
``gfl-det infer-many`` writes: scores in float32, boxes near gt boxes or anywhere. They are judged
by the command ``gfl-det test --results``, whose memory is looked at twice a second.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from gfl_det.cli import main as cli
from gfl_det.inference.shards import EDGES, SCHEMA, ResultFolder, Shard
from gfl_det.utils.files import write_json
from projects.provenance import processor
from projects.scale.throughput import measure

SIDE = 640  # px, of all images
UNTOLD = ('out', 'work_dir')
NEAR = 0.6  # share of the detections that lie near a gt box, if the image has one


class Images:
    """Made-up images: the same numbers give the same boxes.

    Args:
        classes: Number of classes, of which the first are more frequent.
        boxes: Mean number of gt boxes of an image.
        found: Detections of each image.
    """

    def __init__(self, classes: int, boxes: float, found: int) -> None:
        share = 1 / np.arange(3, classes + 3)
        self._share, self._boxes, self._found = share / share.sum(), boxes, found

    def draw(self, first: int, number: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Draw some images.

        Returns:
            Image (from 0), label and box (xywh, px) of gt boxes; image, label, box and score of
            detections.
        """
        rng = np.random.default_rng(first)
        counts = rng.poisson(self._boxes, number)
        image = np.repeat(np.arange(number), counts)
        label = rng.choice(len(self._share), len(image), p=self._share)
        side = 2 ** rng.uniform(3, 8.5, (len(image), 2))
        boxes = np.hstack([rng.uniform(0, 1, (len(image), 2)) * (SIDE - side), side]).round(2)
        of = np.repeat(np.arange(number), self._found)
        near = (rng.random(len(of)) < NEAR) & (counts[of] > 0)
        start = np.cumsum(counts) - counts
        gt = (start[of] + rng.integers(0, np.maximum(counts[of], 1)))[near]
        found_label = rng.choice(len(self._share), len(of), p=self._share)
        found_side = 2 ** rng.uniform(3, 8.5, (len(of), 2))
        found = np.hstack([rng.uniform(0, 1, (len(of), 2)) * (SIDE - found_side), found_side])
        found_label[near] = label[gt]
        size = np.tile(boxes[gt, 2:], 2)
        found[near] = boxes[gt] + rng.normal(0, 0.1, (len(gt), 4)) * size
        found[:, 2:] = np.maximum(found[:, 2:], 1)
        scores = np.where(near, rng.beta(4, 3, len(of)), rng.beta(1, 6, len(of)))
        return [image, label, boxes], [of, found_label, found, scores]


def write(folder: Path, images: int, classes: int, boxes: float, found: int, shard: int) -> None:
    """Write ``labels.json`` and the result folder ``results``, unless they are there."""
    labels, drawn = folder / 'labels.json', Images(classes, boxes, found)
    if labels.exists():
        return
    results = ResultFolder(folder / 'results').detections
    results.mkdir(parents=True)
    part = labels.with_suffix('.part')
    with part.open('w') as file:
        names = [dict(id=label, name=f'class {label}') for label in range(classes)]
        file.write(f'{{"categories": {json.dumps(names)}, "images": [')
        for first in range(0, images, shard):
            rows = range(first, min(images, first + shard))
            entries = ',\n'.join(
                f'{{"id": {row}, "file_name": "{row:08}.jpg", "width": {SIDE}, "height": {SIDE}}}'
                for row in rows
            )
            file.write(f'{"," if first else ""}\n{entries}')
        file.write('], "annotations": [')
        number = 0
        for first in range(0, images, shard):
            size = min(shard, images - first)
            gts, detections = drawn.draw(first, size)
            lines = []
            for image, label, (x, y, w, h) in zip(*(each.tolist() for each in gts)):
                lines.append(
                    f'{{"id": {number + len(lines)}, "image_id": {first + image}, '
                    f'"category_id": {label}, "bbox": [{x}, {y}, {w}, {h}], '
                    f'"area": {w * h:.1f}, "iscrowd": 0}}'
                )
            file.write(('' if not number or not lines else ',\n') + ',\n'.join(lines))
            number += len(lines)
            _write_part(results / Shard(first // shard, ()).part, first, size, detections)
        file.write(']}\n')
    part.rename(labels)


def _write_part(path: Path, first: int, size: int, found: list[np.ndarray]) -> None:
    image, label, boxes, scores = found
    columns = dict(zip(('x1', 'y1'), boxes[:, :2].T)) | dict(score=scores, score_raw=scores)
    columns |= dict(zip(('x2', 'y2'), (boxes[:, :2] + boxes[:, 2:]).T))
    arrays = {name: pa.array(each, pa.float32()) for name, each in columns.items()}
    arrays |= dict.fromkeys(EDGES, pa.nulls(len(scores), pa.float32()))
    names = [f'{first + row:08}.jpg' for row in range(size)]
    of_classes = [f'class {each}' for each in range(label.max() + 1)]
    for key, places, words in (('image', image, names), ('label', label, of_classes)):
        indices = pa.array(places, pa.int32())
        arrays[key] = pa.DictionaryArray.from_arrays(indices, pa.array(words, pa.string()))
    table = pa.Table.from_arrays([arrays[field.name] for field in SCHEMA], schema=SCHEMA)
    pq.write_table(table, path, compression='zstd')


def main() -> None:
    """Write the files, judge them, and print seconds and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('work_dir', type=Path)
    add('--images', type=int, default=1_000_000)
    add('--classes', type=int, default=80)
    add('--boxes', type=float, default=5.0, help='gt boxes of an image, on average')
    add('--detections', type=int, default=20, help='of an image')
    add('--shard-size', type=int, default=1000)
    add('--workers', type=int, default=1)
    add('--out', type=Path, metavar='FILE.json')
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    write(args.work_dir, args.images, args.classes, args.boxes, args.detections, args.shard_size)
    words = [sys.executable, '-m', 'gfl_det', 'test', '--results', str(args.work_dir / 'results')]
    words += ['--annotations', str(args.work_dir / 'labels.json')]
    words += ['--workers', str(args.workers)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, peak = measure(words, 0.5)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f'{seconds:.0f} s, {spent:.0f} s of processor time, {peak:.2f} GiB')
    if args.out:
        settings = {name: each for name, each in vars(args).items() if name not in UNTOLD}
        measured = dict(seconds=seconds, processor_seconds=spent, peak_gib=peak)
        write_json(args.out, dict(processor=processor(), **settings, **measured), indent=1)


if __name__ == '__main__':
    cli.run(main)
