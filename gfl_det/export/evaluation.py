"""The AP of a detector outside mmengine's runner, on a config's data, by the config's metric."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO

from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS
from mmengine.structures import InstanceData

from ..errors import ConfigError
from ..progress import Progress


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


def average_precision(
    detect: Callable[[str], InstanceData], classes: Sequence[str], cfg: Config, split: str
) -> dict[str, float]:
    """The numbers of the metric of a split, such as ``coco/bbox_mAP``.

    Args:
        detect: from the path of a picture to ``bboxes``, ``scores`` and ``labels``.
        classes: names in the order of the labels.
        cfg: the config, with its data in place.
        split: ``val`` or ``test``.

    Raises:
        GFLDetError: see :func:`picture_paths`.
    """
    pictures = picture_paths(cfg, split)
    metric = METRICS.build(copy.deepcopy(cfg[f'{split}_evaluator']))
    metric.dataset_meta = dict(classes=tuple(classes))
    with Progress(len(pictures), 'images') as bar:
        for img_id, path in pictures:
            found = detect(path)
            instances = {name: found[name] for name in ('bboxes', 'scores', 'labels')}
            metric.process({}, [dict(img_id=img_id, ori_shape=(0, 0), pred_instances=instances)])
            bar.advance()
    with redirect_stdout(StringIO()):  # pycocotools' own table
        return metric.evaluate(len(pictures))
