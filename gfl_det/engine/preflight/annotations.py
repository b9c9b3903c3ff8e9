"""Does an annotation file hold what would stop a training, or spoil it? The fast part, no image."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.registry import DATASETS  # a bare name is mmdet's, as in a runner
from mmengine.config import Config

from gfl_det.datasets import parsed
from gfl_det.datasets.checks.check import Source, check_annotations_alone, read
from gfl_det.datasets.checks.draft import Finding
from gfl_det.datasets.coco import CocoDataset
from gfl_det.engine.preflight.classes import class_names
from gfl_det.errors import DataError
from gfl_det.utils.walk import annotation_path, datasets_of, is_remote


def check_annotations(cfg: Config, splits: Sequence[str]) -> None:
    """Check the files that our data sets will read; what is parsed is kept for them.

    Args:
        cfg: The config.
        splits: The splits that the run reads.

    Raises:
        DataError: Entries or classes would stop the training or spoil it. One message lists all.
    """
    checked: set[tuple] = set()
    faults = []
    for split in splits:
        for dataset in datasets_of(cfg, split):
            path = annotation_path(dataset)
            names = class_names(dataset)
            key = (path, tuple(names or ()))
            if not path or is_remote(path) or key in checked or not _is_ours(dataset.get('type')):
                continue
            checked.add(key)
            errors = _errors_of(Source(split, path, classes=names))
            if errors:
                lines = '\n'.join(f'  {finding}' for finding in errors)
                faults.append(
                    f'{path} cannot be trained on:\n{lines}\n'
                    f'All of it: python tools/check_dataset.py {path}'
                    + (' --fix OUT.json' if any(finding.fix for finding in errors) else '')
                )
    if faults:
        raise DataError('\n\nAlso, '.join(faults))


def _errors_of(source: Source) -> list[Finding]:
    dataset = read(source.path)
    errors = [each for each in check_annotations_alone(source, dataset) if each.level == 'error']
    if not errors:
        parsed.keep(source.path, dataset)
    return errors


def _is_ours(kind: object) -> bool:
    """Whether a data set is ours: another's file may be of another format."""
    known = DATASETS.get(kind) if isinstance(kind, str) else kind
    return isinstance(known, type) and issubclass(known, CocoDataset)
