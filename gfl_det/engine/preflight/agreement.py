"""Agreement within a config: classes of model, calibrators and datasets; strides.

A head with wrong strides misplaces every prior, and levels without a stride are ignored: the
detector trains, but poorly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdet.models.dense_heads import ATSSHead
from mmdet.models.dense_heads import GFLHead as MMDetGFLHead
from mmdet.registry import MODELS
from mmengine.config import Config

from gfl_det.calibration.apply import (
    check_class_names,
    check_cut_class_names,
    check_interval_class_names,
)
from gfl_det.datasets.annotations import listed
from gfl_det.errors import ConfigError, GFLDetError
from gfl_det.models.heads import GFLHead
from gfl_det.registry import DATASETS
from gfl_det.swap.pyramid import declared_strides, measure_strides
from gfl_det.utils.config import datasets_of, walk

# Modules whose num_classes does not count the detector's classes.
OTHER_COUNTS = ('backbone', 'rpn_head', 'semantic_head')
HEADS = (GFLHead, MMDetGFLHead, ATSSHead)  # other heads may use priors independent of the features


def check_classes(cfg: Config, splits: Sequence[str]) -> None:
    """Compare each ``num_classes`` in the model with the classes of each dataset.

    Args:
        cfg: The config.
        splits: Splits that the run uses: ``train``, ``val``, ``test``.

    Raises:
        ConfigError: If a count differs (labels would exceed the head's outputs, or outputs would
            not be trained), or two datasets list different classes.
    """
    lists = [
        (f'{split}_dataloader', classes)
        for split in splits
        for dataset in datasets_of(cfg, split)
        if (classes := class_names(dataset)) is not None
    ]
    for where, classes in lists:
        for path, number in class_counts(cfg.model):
            if number != len(classes):
                raise ConfigError(
                    f'{path}.num_classes is {number}, but the dataset of {where} has '
                    f'{len(classes)} classes {listed(classes)}: set num_classes={len(classes)}, or '
                    f'metainfo=dict(classes=(...)) of the dataset to the {number} intended classes.'
                )
    for where, classes in lists[1:]:
        first, expected = lists[0]
        if classes != expected:
            raise ConfigError(
                f'The dataset of {first} has the classes {listed(expected)}, that of {where} has '
                f'{listed(classes)}: give both the same metainfo=dict(classes=(...)).'
            )


def check_calibrator(cfg: Config, splits: Sequence[str]) -> None:
    """Compare the classes of the model's calibrators with those of each dataset.

    Raises:
        DataError: If the classes differ, or a file is not a calibrator.
    """
    checks = dict(
        calibrator=check_class_names,
        interval_calibrator=check_interval_class_names,
        operating_point=check_cut_class_names,
    )
    datasets = [dataset for split in splits for dataset in datasets_of(cfg, split)]
    for _, node in walk(cfg.model, 'model'):
        for key, check in checks.items():
            path = node.get(key)
            if not isinstance(path, str):
                continue
            for dataset in datasets:
                classes = class_names(dataset)
                if classes is not None:
                    check(path, classes)


def class_counts(model: Any) -> Iterator[tuple[str, int]]:
    """Yield the path and value of each ``num_classes`` that counts the detector's classes."""
    for path, node in walk(model, 'model'):
        if isinstance(node.get('num_classes'), int) and not set(path.split('.')) & set(
            OTHER_COUNTS
        ):
            yield path, node['num_classes']


def class_names(dataset: dict[str, Any]) -> list[str] | None:
    """Return the classes a dataset will have: from its metainfo, else its type's own.

    Returns None if only the built dataset knows them.
    """
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        kind = dataset.get('type')
        kind = DATASETS.get(kind) if isinstance(kind, str) else kind
        classes = getattr(kind, 'METAINFO', {}).get('classes')
    if isinstance(classes, str):  # mmengine reads a str as a file name
        path = Path(classes)
        return path.read_text().splitlines() if path.is_file() else None
    return None if classes is None else list(classes)


def check_pyramid(cfg: Config) -> None:
    """Compare the strides in a head's config with those of backbone and neck.

    Raises:
        ConfigError: If they differ in number or value.
    """
    head = cfg.model.get('bbox_head')
    if not isinstance(head, dict) or not _is_checked(head.get('type')):
        return
    declared = declared_strides(head)
    if not declared:
        return
    try:
        measured = measure_strides(cfg.model)
    except GFLDetError:  # building the model reports the error
        return
    if declared == measured:
        return
    raise ConfigError(
        f'The strides of model.bbox_head are {declared}, but backbone and neck have '
        f'{len(measured)} levels of strides {measured}: set strides={measured}, or give '
        f'{len(declared)} levels (out_indices of the backbone, start_level and num_outs of the '
        'neck).'
    )


def _is_checked(kind: object) -> bool:
    known = MODELS.get(kind) if isinstance(kind, str) else kind
    return isinstance(known, type) and issubclass(known, HEADS)
