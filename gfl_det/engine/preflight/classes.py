"""The classes of a config: whether its model and its data sets agree on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from gfl_det.calibration.apply import check_class_names, check_interval_class_names
from gfl_det.datasets.annotations import listed
from gfl_det.errors import ConfigError
from gfl_det.registry import DATASETS
from gfl_det.utils.config import datasets_of, walk

# Parts whose num_classes counts something else than the detector's classes.
OTHER_COUNTS = ('backbone', 'rpn_head', 'semantic_head')


def check_classes(cfg: Config, splits: Sequence[str]) -> None:
    """Compare each ``num_classes`` in the model with the classes of each data set.

    Args:
        cfg: The config.
        splits: The splits that the run reads: ``train``, ``val``, ``test``.

    Raises:
        ConfigError: A count differs (labels would exceed the head's outputs, or train nothing), or
            two data sets list different classes.
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
                    f'metainfo=dict(classes=(...)) of the dataset to the {number} classes meant.'
                )
    for where, classes in lists[1:]:
        first, expected = lists[0]
        if classes != expected:
            raise ConfigError(
                f'The dataset of {first} has the classes {listed(expected)}, that of {where} has '
                f'{listed(classes)}: give both the same metainfo=dict(classes=(...)).'
            )


def check_calibrator(cfg: Config, splits: Sequence[str]) -> None:
    """Compare the classes of calibrators that the model names with those of each data set.

    Raises:
        DataError: They differ, or a file is not a calibrator.
    """
    checks = dict(calibrator=check_class_names, interval_calibrator=check_interval_class_names)
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
    """Return the classes a data set will have: its metainfo's, else its type's own.

    None where only the built data set will know.
    """
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        kind = dataset.get('type')
        kind = DATASETS.get(kind) if isinstance(kind, str) else kind
        classes = getattr(kind, 'METAINFO', {}).get('classes')
    if isinstance(classes, str):  # mmengine reads it as the name of a file with one class per line
        path = Path(classes)
        return path.read_text().splitlines() if path.is_file() else None
    return None if classes is None else list(classes)
