"""The AP of an exported detector on a config's data, counted by the config's own metric."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS

from ..errors import ConfigError
from .runtime import ExportedDetector


def picture_paths(cfg: Config, split: str) -> list[tuple[int, str]]:
    """Ids and paths of the pictures of a split: ``train``, ``val`` or ``test``.

    Raises:
        ConfigError: the config has no such split.
        DataError: its annotations cannot be read.
    """
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise ConfigError(f'The config has no {split}_dataloader to take pictures from.')
    dataset = DATASETS.build({**copy.deepcopy(loader.dataset), 'pipeline': []})
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    return [(info['img_id'], info['img_path']) for info in infos]


def average_precision(detector: ExportedDetector, cfg: Config, split: str) -> dict[str, float]:
    """The numbers of the metric of a split, such as ``coco/bbox_mAP``.

    Args:
        detector: whose preprocessing takes the place of the config's pipeline.
        cfg: the config, with its data in place.
        split: ``val`` or ``test``.

    Raises:
        GFLDetError: see :func:`picture_paths`.
    """
    pictures = picture_paths(cfg, split)
    metric = METRICS.build(copy.deepcopy(cfg[f'{split}_evaluator']))
    metric.dataset_meta = dict(classes=detector.classes)
    for sample in _samples(detector, pictures):
        metric.process({}, [sample])
    return metric.evaluate(len(pictures))


def _samples(detector: ExportedDetector, pictures: list[tuple[int, str]]) -> Iterator[dict]:
    for img_id, path in pictures:
        (found,) = detector(path)
        instances = {name: found[name] for name in ('bboxes', 'scores', 'labels')}
        yield dict(img_id=img_id, ori_shape=(0, 0), pred_instances=instances)
