"""The AP of a detector outside mmengine's runner, on a config's data, by the config's metric."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, METRICS
from mmengine.structures import InstanceData

from gfl_det.engine.preflight.data import check_data
from gfl_det.engine.run_split import Split, truths_path
from gfl_det.errors import ConfigError
from gfl_det.utils.config import Node, datasets_of, metrics_of
from gfl_det.utils.console import Progress


def picture_paths(cfg: Config, split: str) -> list[tuple[int, str]]:
    """Ids and paths of the pictures of a split, ``train``, ``val`` or ``test``, each once.

    Data sets in wrappers that repeat or join them are read one after another; what several of them
    hold comes where it comes first.

    Raises:
        ConfigError: the config has no such split.
        DataError: its annotations cannot be read.
    """
    nodes = datasets_of(cfg, split)
    if not nodes:
        raise ConfigError(f'The config has no {split}_dataloader to take pictures from.')
    pictures = []
    for node in nodes:
        dataset = DATASETS.build({**copy.deepcopy(node), 'pipeline': []})
        infos = (dataset.get_data_info(index) for index in range(len(dataset)))
        pictures += [(info['img_id'], info['img_path']) for info in infos]
    return list(dict.fromkeys(pictures))


def coco_metrics(cfg: Config, split: Split) -> list[Node]:
    """The metrics of a split that need detections alone, with their annotation file.

    Raises:
        ConfigError: there is none.
    """
    found = [each for each in metrics_of(cfg, split) if str(each['type']).endswith('CocoMetric')]
    if not found:
        raise ConfigError(
            f'The config has no CocoMetric as {split}_evaluator to count AP with: add one, or '
            'leave --ap out.'
        )
    return [dict(each, ann_file=each.get('ann_file') or truths_path(cfg, split)) for each in found]


def check_judged(cfg: Config, split: Split) -> None:
    """Refuse a split that :func:`average_precision` could not be counted on.

    Raises:
        GFLDetError: it lacks pictures, files or a COCO metric.
    """
    check_data(cfg, (split,))
    if not picture_paths(cfg, split):
        raise ConfigError(f'The {split} split has no pictures: name another for --ap.')
    coco_metrics(cfg, split)


def average_precision(
    detect: Callable[[str], InstanceData], classes: Sequence[str], cfg: Config, split: Split
) -> dict[str, float]:
    """The numbers of the COCO metrics of a split, such as ``coco/bbox_mAP``.

    Args:
        detect: from the path of a picture to ``bboxes``, ``scores`` and ``labels``.
        classes: names in the order of the labels.
        cfg: the config, with its data in place.
        split: ``val`` or ``test``.

    Raises:
        GFLDetError: see :func:`picture_paths` and :func:`coco_metrics`.
    """
    pictures = picture_paths(cfg, split)
    with _quiet():
        metrics = [METRICS.build(copy.deepcopy(each)) for each in coco_metrics(cfg, split)]
    for metric in metrics:
        metric.dataset_meta = dict(classes=tuple(classes))
    with Progress(len(pictures), 'images') as bar:
        for img_id, path in pictures:
            found = detect(path)
            instances = {name: found[name] for name in ('bboxes', 'scores', 'labels')}
            sample = dict(img_id=img_id, ori_shape=(0, 0), pred_instances=instances)
            for metric in metrics:
                metric.process({}, [sample])
            bar.advance()
    with _quiet():
        found_by = [metric.evaluate(len(pictures)) for metric in metrics]
    return {name: value for values in found_by for name, value in values.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back pycocotools' own table and mmengine's log of the same numbers."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)
