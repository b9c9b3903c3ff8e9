"""The metrics of a config: whether they can judge what its data sets show.

A metric reads its own annotation file, in training for the first time after an epoch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmdet.registry import METRICS  # a bare name is mmdet's, as in a runner
from mmengine.config import Config

from gfl_det.datasets.annotations import Entry, absent_text, find, match_classes
from gfl_det.datasets.checks.check import read
from gfl_det.datasets.table import CocoTable, misjudged_ids, table_of, with_absent
from gfl_det.datasets.tidying import tidy
from gfl_det.engine.preflight.agreement import class_names
from gfl_det.engine.preflight.data import is_ours
from gfl_det.evaluation.calibration_metric import CalibrationMetric
from gfl_det.evaluation.coco_metric import CocoMetric
from gfl_det.evaluation.shown import Sample, match_samples
from gfl_det.utils.config import (
    Node,
    annotation_path,
    datasets_of,
    image_folder,
    is_remote,
    metrics_of,
)

OUR_METRIC = 'gfl_det.CocoMetric'


def check_metrics(cfg: Config, splits: Sequence[str]) -> None:
    """Check the files that metrics read against those of the data sets.

    Where mmdet's ``CocoMetric`` would stop at a file or judge it wrongly, the config gets ours in
    its place, which takes the same arguments; that is told.

    Raises:
        DataError: A file cannot be judged, or lacks a class or an image of the data sets.
    """
    for split in splits:
        for metric in metrics_of(cfg, split):
            path, kind = metric.get('ann_file'), _kind(metric)
            if kind is None or not path or is_remote(path) or metric.get('backend_args'):
                continue
            if kind is MMDetCocoMetric:
                fault = plain_fault(path) or _absent_fault(path, datasets_of(cfg, split))
                if fault is None:
                    continue
                print(
                    f"warning: mmdet's CocoMetric cannot judge {path} ({fault}), so "
                    f'{split}_evaluator is {OUR_METRIC}, which takes the same arguments',
                    file=sys.stderr,
                )
                metric['type'], kind = OUR_METRIC, CocoMetric
            if issubclass(kind, (CocoMetric, CalibrationMetric)):
                _check_shown(table_of(read(path), path), kind, datasets_of(cfg, split))


def plain_fault(path: str) -> str | None:
    """Say why pycocotools, which mmdet's metric reads by, does not judge a file rightly."""
    with open(path, 'rb') as file:
        begin = file.read(4)
    if begin.startswith(b'\xef\xbb\xbf') or b'\0' in begin:
        return 'it is not plain UTF-8'
    dataset = read(path)
    _, changes = tidy(dataset, path)
    entries = [each for each in dataset.get('annotations') or [] if isinstance(each, dict)]
    for field in ('area', 'iscrowd', 'bbox'):
        lacking = [each.get('id') for each in entries if each.get(field) is None]
        if lacking:
            return f'annotations have no {field}: {find(lacking)}'
    odd = [each for each in changes if each.fix]
    wrong = misjudged_ids([each.get('id') for each in entries])
    if wrong:
        return f'ids of annotations that it mixes up: {find(wrong)}'
    return str(odd[0]) if odd else None


def _absent_fault(path: str, datasets: Sequence[Node]) -> str | None:
    """Say which classes of the data sets a file lacks: mmdet then shifts the labels of others."""
    for dataset in datasets:
        names = class_names(dataset)
        if names is not None and is_ours(dataset.get('type')):
            _, absent = with_absent(table_of(read(path), path), names)
            if absent:
                return absent_text(absent)
    return None


def _check_shown(table: CocoTable, kind: type, datasets: Sequence[Node]) -> None:
    """Check that classes and images of the data sets are in a metric's file."""
    samples: list[Sample] = []
    for dataset in datasets:
        names, path = class_names(dataset), annotation_path(dataset)
        if names is not None and issubclass(kind, CocoMetric):
            judged = with_absent(table, names)[0].class_names
            categories = [dict(id=row, name=name) for row, name in enumerate(judged)]
            match_classes(names, categories, table.source)
        if not path or is_remote(path) or not is_ours(dataset.get('type')):
            return
        if len(datasets) == 1 and os.path.realpath(path) == os.path.realpath(table.source):
            return
        folder = image_folder(dataset) or ''
        samples += [_sample(image, folder) for image in _images(dataset, path)]
    match_samples(samples, table.image_ids, table.file_names, kind.__name__)


def _images(dataset: Node, path: str) -> list[Entry]:
    """Return the images that a data set will show; none where it leaves some out."""
    indices = dataset.get('indices')
    images = tidy(read(path), path)[0]['images']
    if isinstance(indices, int):
        return images[:indices] if indices >= 0 else images[indices:]
    return (
        images
        if indices is None
        else [images[i] for i in indices if -len(images) <= i < len(images)]
    )


def _sample(image: Entry, folder: str) -> Sample:
    return Sample(image['id'], os.path.join(folder, str(image.get('file_name', ''))))


def _kind(metric: Node) -> type | None:
    name = metric.get('type')
    known = METRICS.get(name) if isinstance(name, str) else name
    return known if isinstance(known, type) else None
