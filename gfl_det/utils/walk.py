"""Paths through a config: every dict in it, and the data sets and metrics of a split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

Node = dict[str, Any]


def walk(value: Any, path: str) -> Iterator[tuple[str, Node]]:
    """Yield each dict below a value together with its dotted path, the outer ones first."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from walk(item, f'{path}.{key}')
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from walk(item, f'{path}.{index}')


def datasets_of(cfg: Config | Node, split: str) -> list[Node]:
    """Return the data sets of a split without the wrappers (repeat, concat) around them."""

    def unwrap(dataset: Node) -> Iterator[Node]:
        inner = dataset.get('datasets') or [dataset.get('dataset')]
        if inner == [None]:
            yield dataset
        for wrapped in inner:
            if isinstance(wrapped, dict):
                yield from unwrap(wrapped)

    loader = cfg.get(f'{split}_dataloader') or {}
    return list(unwrap(loader['dataset'])) if 'dataset' in loader else []


def metrics_of(cfg: Config, split: str) -> list[Node]:
    """Return the metrics of a split, whether the config holds one or a list."""
    evaluator = cfg.get(f'{split}_evaluator') or []
    return [evaluator] if isinstance(evaluator, dict) else list(evaluator)


def annotation_path(dataset: Node) -> str | None:
    """Return where a data set will look for its annotation file; None if it has none."""
    name = dataset.get('ann_file')
    return join_root(dataset.get('data_root'), name) if name else None


def image_folder(dataset: Node) -> str | None:
    """Return where a data set will look for its images; None if it does not say."""
    prefix = dataset.get('data_prefix') or {}
    folder = prefix.get('img', prefix.get('img_path'))
    return join_root(dataset.get('data_root'), folder) if folder is not None else None


def join_root(root: str | None, path: str) -> str:
    """Join as mmengine's data sets do: an absolute path or an address stands alone."""
    return path if not root or os.path.isabs(path) or is_remote(path) else os.path.join(root, path)


def is_remote(path: str) -> bool:
    """Tell storage addresses such as ``s3://`` from files."""
    return '://' in path
