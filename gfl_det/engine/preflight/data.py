"""The files of the data sets and of the metrics: whether they are where the config says, and agree.

A metric reads its own annotation file, in training for the first time after an epoch.
"""

from __future__ import annotations

import difflib
import json
import mmap
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmdet.evaluation import LVISMetric
from mmdet.evaluation import VOCMetric as MMDetVOCMetric
from mmdet.registry import (
    DATASETS,  # a bare name is mmdet's, as in a runner
    METRICS,  # a bare name is mmdet's, as in a runner
)
from mmengine.config import Config
from pycocotools.mask import iou as box_iou

from gfl_det.datasets import coco
from gfl_det.datasets.annotations import Entry, absent_text, as_boxes, find, match_classes
from gfl_det.datasets.checks.check import AnnotationSource, check_annotations_alone, read
from gfl_det.datasets.checks.draft import Finding
from gfl_det.datasets.coco import CocoDataset
from gfl_det.datasets.columns import read_columns
from gfl_det.datasets.table import (
    CocoTable,
    misjudged_ids,
    table_of,
    table_of_columns,
    with_absent,
)
from gfl_det.datasets.tidying import find_file, is_there, refuse_other_formats, tidy
from gfl_det.engine.preflight.agreement import class_names
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.calibration_metric import CalibrationMetric
from gfl_det.evaluation.coco_metric import AVERAGE_PRECISIONS, AVERAGE_RECALLS, CocoMetric
from gfl_det.evaluation.shown import Sample, match_samples
from gfl_det.utils.config import (
    Node,
    annotation_path,
    datasets_of,
    image_folder,
    is_remote,
    metrics_of,
    walk,
)

SAMPLED_IMAGES = 20  # enough to notice a wrong folder, too few to cost time on a network disk
FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')

COCO_FILES = {'instances_train2017.json', 'instances_val2017.json'}
COCO_HELP = """\
How to get COCO 2017 (https://cocodataset.org): download these three and unpack them in {root}
  http://images.cocodataset.org/zips/train2017.zip                         18 GB
  http://images.cocodataset.org/zips/val2017.zip                            1 GB
  http://images.cocodataset.org/annotations/annotations_trainval2017.zip  241 MB
so that you have
  {root}/annotations/instances_train2017.json, instances_val2017.json
  {root}/train2017/  118,287 images
  {root}/val2017/    5,000 images
COCO lies elsewhere on this machine: add --cfg-options data_root=/path/to/coco
Your own data, in COCO, YOLO or VOC format: gfl-det train --data PATH"""
DIGITS_HELP = 'This data set is built, not downloaded: gfl-det digits'
OWN_HELP = """\
The data lies elsewhere: add --cfg-options data_root=/path/to/data
Your own data, in COCO, YOLO or VOC format: gfl-det train --data PATH"""
DEMO_HELP = 'No data at hand: `make demo` trains on an embedded data set and needs no download.'
OUR_METRIC, OUR_VOC_METRIC = 'gfl_det.CocoMetric', 'gfl_det.VOCMetric'
PREFIXES = {'CocoMetric': 'coco', 'VOCMetric': 'pascal_voc'}  # of the numbers they give
COCO_NUMBERS = [
    *(
        f'{kind}_{item}'
        for kind in ('bbox', 'segm')
        for item in AVERAGE_PRECISIONS + AVERAGE_RECALLS
    ),
    *AVERAGE_RECALLS,
]
BEST = {'coco': 'bbox_mAP', 'pascal_voc': 'mAP'}
PACK = 'PackDetInputs'
ALIKE_IOU = 0.5  # of a box that was corrected
ALIKE_SHARE = 0.5  # of boxes that two files of the same images have in common


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Check that annotation files, image folders and a sample of the images exist.

    Args:
        cfg: The config.
        splits: The splits that the run reads: ``train``, ``val``, ``test``.

    Raises:
        DataError: If something is missing. One message lists all of it, where it belongs, and how
            to get it.
    """
    missing: list[str] = []
    for split in splits:
        for dataset in datasets_of(cfg, split):
            missing += missing_parts(dataset)
        paths = [metric.get('ann_file') for metric in metrics_of(cfg, split)]
        missing += [path for path in paths if path and not _exists(path)]
    missing = list(dict.fromkeys(missing))  # splits share files
    if missing:
        raise DataError(_missing_message(cfg, splits, missing))


def missing_parts(dataset: Node) -> list[str]:
    """Return the missing ones of the paths that a data set needs; of the images, a sample."""
    annotations, folder = annotation_path(dataset), image_folder(dataset)
    missing = [path for path in (annotations,) if path and not _exists(path)]
    if not folder or is_remote(folder):
        return missing
    if not os.path.isdir(folder):
        return [*missing, f'{folder.rstrip("/")}/']
    if missing or not annotations or is_remote(annotations):
        return missing
    # A pipeline may have been told to live with missing images.
    if any(step.get('ignore_empty') for _, step in walk(dataset.get('pipeline', []), '')):
        return []
    sample = list(sample_file_names(annotations))
    absent = [name for name in sample if not is_there(folder, name)]
    if not absent:
        return []
    refuse_other_formats(read(annotations), annotations)  # others name other files
    path = os.path.join(folder, absent[0])
    found = find_file(folder, absent[0])
    cure = (
        ''
        if found is None
        else f'; {found} is there: gfl-det check {annotations} --images {folder} --fix OUT.json'
    )
    return [
        f'{path} ({len(absent)} of {len(sample)} sampled images of {annotations} are missing{cure})'
    ]


def sample_file_names(annotations: str, number: int = SAMPLED_IMAGES) -> Iterator[str]:
    """Yield image names from a COCO file, spread over it, without parsing the file.

    COCO's training file has 450 MB: parsing takes half a minute, and the data set does it anyway.
    """
    if not os.path.getsize(annotations):
        return
    with (
        open(annotations, 'rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        first, last = text.find(b'"file_name"'), text.rfind(b'"file_name"')
        if first < 0:
            return
        offsets = {first + (last - first) * step // max(number - 1, 1) for step in range(number)}
        found = {}
        for offset in sorted(offsets):
            match = FILE_NAME.search(text, offset)
            if match is not None:
                found[match.start()] = match.group(1)
        for name in found.values():
            with suppress(ValueError):  # of a file that is not JSON; its reader reports it
                value = json.loads(name)
                if value:
                    yield value


def _exists(path: str) -> bool:
    return is_remote(path) or os.path.isfile(path)


def _missing_message(cfg: Config, splits: Sequence[str], missing: list[str]) -> str:
    datasets = [dataset for split in splits for dataset in datasets_of(cfg, split)]
    roots = [str(dataset['data_root']) for dataset in datasets if dataset.get('data_root')]
    root = os.path.normpath(roots[0]) if roots else 'data/coco'
    if any(os.path.basename(path) in COCO_FILES for path in map(annotation_path, datasets) if path):
        how = COCO_HELP.format(root=root)
    elif Path(root).parts[-2:] == ('data', 'digits'):
        how = DIGITS_HELP
    else:
        how = OWN_HELP
    lines = [
        f'{cfg.filename or "The config"} needs data that is not there.',
        f'Missing (relative paths start at {os.getcwd()}):',
        *(f'  {path}' for path in missing),
        how,
    ]
    return '\n'.join(lines if how is DIGITS_HELP else [*lines, DEMO_HELP])


def check_annotations(cfg: Config, splits: Sequence[str]) -> None:
    """Check the files that our data sets will read; what is parsed is kept for them.

    Args:
        cfg: The config.
        splits: The splits that the run reads. A split that is only tested may have no box.

    Raises:
        DataError: If entries or classes would stop the run or spoil it. One message lists all.
    """
    checked: set[tuple] = set()
    faults = []
    verb = 'trained on' if 'train' in splits else 'judged'
    for split in splits:
        for dataset in datasets_of(cfg, split):
            path = annotation_path(dataset)
            names = class_names(dataset)
            key = (path, tuple(names or ()))
            if not path or is_remote(path) or key in checked or not is_ours(dataset.get('type')):
                continue
            checked.add(key)
            errors = _errors_of(AnnotationSource(split, path, classes=names))
            if errors:
                lines = '\n'.join(f'  {finding}' for finding in errors)
                faults.append(
                    f'{path} cannot be {verb}:\n{lines}\n'
                    f'All of it: gfl-det check {path}'
                    + (' --fix OUT.json' if any(finding.fix for finding in errors) else '')
                )
    if faults:
        raise DataError('\n\nAlso, '.join(faults))


def _errors_of(source: AnnotationSource) -> list[Finding]:
    columns = read_columns(source.path)
    dataset = read(source.path) if columns is None else columns
    errors = [each for each in check_annotations_alone(source, dataset) if each.level == 'error']
    if source.name == 'test':  # such sets may list images alone
        errors = [each for each in errors if each.code != 'boxes.none']
    if not errors:
        coco.keep(source.path, dataset)
    return errors


def is_ours(kind: object) -> bool:
    """Whether a data set is ours: another's file may be of another format."""
    known = DATASETS.get(kind) if isinstance(kind, str) else kind
    return isinstance(known, type) and issubclass(known, CocoDataset)


def check_metrics(cfg: Config, splits: Sequence[str]) -> None:
    """Check the files that metrics read against those of the data sets.

    Where mmdet's ``CocoMetric`` would stop at a file or judge it wrongly, the config gets ours in
    its place, which takes the same arguments; that is told. In the place of its ``VOCMetric`` comes
    ours always, which gives the same numbers.

    Raises:
        ConfigError: If the samples lack what a metric takes from them, or its package is missing.
        DataError: If a file cannot be judged, or lacks a class or an image of the data sets.
    """
    for split in splits:
        for metric in metrics_of(cfg, split):
            path, kind = metric.get('ann_file'), _kind(metric)
            if kind is MMDetVOCMetric:
                metric['type'] = OUR_VOC_METRIC
            if kind is LVISMetric and find_spec('lvis') is None:
                raise ConfigError(
                    f'{split}_evaluator is LVISMetric, which needs the package lvis: install it, '
                    f'or use {OUR_METRIC} for annotations that are complete.'
                )
            if kind is not None:
                _check_packed(metric, kind, split, datasets_of(cfg, split))
            if kind is None or not path or is_remote(path) or metric.get('backend_args'):
                continue
            if kind is MMDetCocoMetric:
                fault = (
                    _setting_fault(metric)
                    or plain_fault(path)
                    or _absent_fault(path, datasets_of(cfg, split))
                )
                if fault is None:
                    continue
                print(
                    f"warning: mmdet's CocoMetric cannot judge {path} ({fault}), so "
                    f'{split}_evaluator is {OUR_METRIC}, which takes the same arguments',
                    file=sys.stderr,
                )
                metric['type'], kind = OUR_METRIC, CocoMetric
            if issubclass(kind, (CocoMetric, CalibrationMetric)):
                _check_shown(_table(path), kind, datasets_of(cfg, split))


def settle_best(cfg: Config) -> None:
    """Let ``save_best`` name a number that the metrics of validation give.

    A config that inherits COCO's ``coco/bbox_mAP`` and judges by VOC's metric would stop after its
    first validation.

    Raises:
        ConfigError: If ``CocoMetric`` gives no number of the name.
    """
    saver = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    best, metrics = saver.get('save_best'), metrics_of(cfg, 'val')
    known = [PREFIXES.get(str(each.get('type')).rpartition('.')[2]) for each in metrics]
    if not isinstance(best, str) or '/' not in best or not known or None in known:
        return
    prefixes = [each.get('prefix') or prefix for each, prefix in zip(metrics, known)]
    prefix, _, name = best.partition('/')
    if prefix in prefixes:
        is_coco = known[prefixes.index(prefix)] == 'coco'
        is_free = name.endswith('_precision') or name.startswith('AR@')  # of classes, of numbers
        if is_coco and not is_free and name not in COCO_NUMBERS:
            near = difflib.get_close_matches(name, COCO_NUMBERS, n=1)
            hint = f'did you mean {prefix}/{near[0]}?' if near else 'bbox_mAP is the usual one.'
            raise ConfigError(f"save_best={best!r} is none of CocoMetric's numbers: {hint}")
        return
    saver['save_best'] = f'{prefixes[0]}/{BEST[str(known[0])]}'
    print(
        f'note: save_best is {saver["save_best"]}, as no metric of val_evaluator gives {best}',
        file=sys.stderr,
    )


def _check_packed(metric: Node, kind: type, split: str, datasets: Sequence[Node]) -> None:
    """Check that the pipelines pack what a metric takes from the samples: ids, gt boxes.

    Raises:
        ConfigError: If they do not.
    """
    if not issubclass(kind, (MMDetCocoMetric, CalibrationMetric)):
        return
    needed = ('img_id', 'ori_shape') if issubclass(kind, MMDetCocoMetric) else ('img_id',)
    for dataset in datasets:
        packs = [
            node.get('meta_keys')
            for _, node in walk(dataset.get('pipeline') or [], '')
            if _type_name(node).endswith(PACK)
        ]
        lacking = [key for keys in packs if keys for key in needed if key not in keys]
        if lacking:
            raise ConfigError(
                f'{split}_evaluator needs {lacking[0]} of each image: add it to the meta_keys of '
                f'{PACK} in the pipeline of {split}_dataloader.'
            )
        if (
            not metric.get('ann_file')
            and packs
            and not any('instances' in (keys or ()) for keys in packs)
        ):
            raise ConfigError(
                f'{split}_evaluator has a metric without gt boxes: give it an ann_file that lists '
                f"all images of {split}_dataloader, or add 'instances' to the meta_keys of {PACK} "
                'behind LoadAnnotations.'
            )


def _type_name(node: Node) -> str:
    kind = node.get('type')
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _setting_fault(metric: Node) -> str | None:
    """Say which setting stops mmdet's metric after the detections are made."""
    if metric.get('iou_thrs') is not None:
        return f'iou_thrs={metric["iou_thrs"]!r} stops it'
    if 'proposal_fast' in (metric.get('metric') or ()):
        return 'proposal_fast stops it where images have different numbers of boxes'
    return None


def plain_fault(path: str) -> str | None:
    """Say why pycocotools, which mmdet's metric reads by, does not judge a file rightly."""
    with open(path, 'rb') as file:
        begin = file.read(4)
    if begin.startswith(b'\xef\xbb\xbf') or b'\0' in begin:
        return 'it is not plain UTF-8'
    columns = read_columns(path)
    if columns is not None:
        for field, lacks in (('area', np.isnan(columns.area)), ('iscrowd', columns.crowd < 0)):
            if lacks.any():
                return f'annotations have no {field}: {find(columns.ids[lacks].tolist())}'
        wrong = misjudged_ids(columns.ids.tolist())
        return f'ids of annotations that it mixes up: {find(wrong)}' if wrong else None
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
            _, absent = with_absent(_table(path), names)
            if absent:
                return absent_text(absent)
    return None


def _table(path: str) -> CocoTable:
    columns = read_columns(path)
    return table_of(read(path), path) if columns is None else table_of_columns(columns, path)


def _check_shown(table: CocoTable, kind: type, datasets: Sequence[Node]) -> None:
    """Check that classes, images and boxes of the data sets are in a metric's file."""
    samples: list[Sample] = []
    boxes: list[np.ndarray] = []  # of each sample
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
        content, _ = tidy(read(path), path)
        images = _images(dataset, content['images'])
        samples += [_sample(image, folder) for image in images]
        boxes += _boxes(content, images)
    rows = match_samples(samples, table.image_ids, table.file_names, kind.__name__)
    _check_boxes(boxes, table, rows)


def _boxes(content: Entry, images: list[Entry]) -> list[np.ndarray]:
    """Return the boxes (n, 4) of each image, xywh px; what is not four numbers is left out."""
    entries = content.get('annotations') or []
    values, is_numeric = as_boxes([entry.get('bbox') for entry in entries])
    of_image: dict[Any, list[np.ndarray]] = defaultdict(list)
    for entry, box in compress(zip(entries, values), is_numeric.tolist()):
        of_image[entry['image_id']].append(box)
    return [np.array(of_image[image['id']]).reshape(-1, 4) for image in images]


def _check_boxes(boxes: list[np.ndarray], table: CocoTable, rows: Sequence[int]) -> None:
    """Refuse a metric's file that has other boxes under the same ids and names of images.

    Folders of several splits often number their images alike. A file with other classes, or with
    boxes that were corrected, still has most of them.

    Raises:
        DataError: If most boxes of both files have no counterpart in the other.
    """
    totals, found = np.zeros(2), np.zeros(2)
    for own, row in zip(boxes, rows):
        other = table.boxes[table.image == row]
        totals += len(own), len(other)
        if len(own) and len(other):
            alike = box_iou(own, other, [0] * len(other)) >= ALIKE_IOU
            found += alike.any(1).sum(), alike.any(0).sum()
    if totals.all() and (found / totals).max() < ALIKE_SHARE:
        raise DataError(
            f'{table.source}, which the metric reads, has other boxes for the images that are '
            f'shown: {int(found[0])} of {int(totals[0])} boxes of the data set are there. Give '
            'both the same file.'
        )


def _images(dataset: Node, images: list[Entry]) -> list[Entry]:
    """Return the images that a data set will show; none where it leaves some out."""
    indices = dataset.get('indices')
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
