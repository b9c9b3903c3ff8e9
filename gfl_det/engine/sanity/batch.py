"""A few pictures of the training set, as the pipeline gives them, and their gt boxes as arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub

from gfl_det.errors import DataError
from gfl_det.registry import DATASETS

TRIES = 20  # pictures looked at for each one that is wanted

Batch = dict[str, Any]  # inputs: uint8 pictures; data_samples: their gt boxes


class Examples(NamedTuple):
    """Pictures with their boxes, for looking at them without a model."""

    pictures: list[np.ndarray]  # (H, W, 3) uint8
    boxes: list[np.ndarray]  # (N, 4) float64 xyxy px
    labels: list[np.ndarray]  # (N,) int64

    @classmethod
    def of(cls, batch: Batch) -> Examples:
        """Those of a batch."""
        gts = [sample.gt_instances for sample in batch['data_samples']]
        return cls(
            [picture.permute(1, 2, 0).numpy() for picture in batch['inputs']],
            [get_box_tensor(each.bboxes).double().numpy() for each in gts],
            [each.labels.numpy() for each in gts],
        )


def build_dataset(cfg: Config) -> Any:
    """Build the training set of a config.

    Raises:
        DataError: It cannot be read.
    """
    hub = MessageHub.get_current_instance()
    for counter in ('iter', 'epoch'):
        hub.update_info(counter, 0)  # some augmentations count
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    return dataset


def load(dataset: Any, number: int, seed: int = 0) -> Batch:
    """Load pictures with boxes from all over a data set, each through the pipeline once.

    Args:
        dataset: The training set.
        number: Of pictures; fewer where fewer have boxes.
        seed: Of the pipeline's random steps.

    Raises:
        DataError: No picture has a box.
    """
    np.random.seed(seed)
    torch.manual_seed(seed)
    total = len(dataset)
    number = min(number, total)
    # Evenly spaced ones first, then their neighbours where those have no boxes.
    starts = [first * total // max(number, 1) for first in range(number)]
    places = (start + offset for offset in range(TRIES) for start in starts)
    samples: list[Any] = []
    for index in dict.fromkeys(place for place in places if place < total):
        if len(samples) == number:
            break
        sample = dataset[index]
        if sample is not None and len(sample['data_samples'].gt_instances):
            samples.append(sample)
    if not samples:
        raise DataError('No picture of the training set has a box: see gfl-det check.')
    return pseudo_collate(samples)


def truths_of(sample: DetDataSample) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes ``(N, 4)`` xyxy px and labels ``(N,)`` of a sample."""
    gts = sample.gt_instances
    return get_box_tensor(gts.bboxes).cpu().double().numpy(), gts.labels.cpu().numpy()
