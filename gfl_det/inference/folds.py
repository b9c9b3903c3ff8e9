"""Cross-fitting: K trainings, each without one part of the images, and their detections in it.

So each image is processed by a detector that was not trained on it.
"""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config

from gfl_det.compat.checkpoint import load_file
from gfl_det.datasets.annotations import parse as parse_annotations
from gfl_det.datasets.formats.own_data import group_near_copies
from gfl_det.datasets.tidying import find_file
from gfl_det.engine.training.checkpoints import newest_checkpoint
from gfl_det.errors import ConfigError, DataError, GFLDetError
from gfl_det.evaluation.detections import image_key, read_annotations
from gfl_det.evaluation.label_evidence import UncertainDetections
from gfl_det.inference.coverage import Split, detect_unsuppressed
from gfl_det.inference.inferencer import GFLInferencer
from gfl_det.inference.stored_config import parse
from gfl_det.utils.config import (
    OWN_CONFIG,
    annotation_path,
    check_split,
    datasets_of,
    image_folder,
    load_config,
)
from gfl_det.utils.files import write_json, write_text

SETTINGS = 'folds.json'  # what the trainings of a folder were made for


class Fold(NamedTuple):
    """A trained detector, and the images that it has not seen."""

    checkpoint: str
    image_ids: list[Any]


def train_folds(
    config: str, annotations: str, images: str, work_dir: Path, number: int, seed: int = 0
) -> list[Fold]:
    """Train once per fold, or go on with what is there.

    Args:
        config: File, work dir or name of a shipped config; its training data are replaced.
        annotations: COCO file.
        images: Folder of its images.
        work_dir: Folder of the trainings.
        number: Number of folds, at least 2.
        seed: Seed of the split.

    Raises:
        ConfigError: If a training fails, or the folder holds those of other settings.
        DataError: If there are fewer images than folds.
    """
    table = read_annotations(annotations)
    if len(table.image_ids) < number:
        raise DataError(
            f'{annotations} has {len(table.image_ids)} images, too few for --folds {number}.'
        )
    _keep_settings(work_dir, config, annotations, number, seed)
    dataset = parse_annotations(Path(annotations).read_bytes(), annotations)
    files = [Path(images) / (find_file(images, name) or name) for name in table.file_names]
    part = split_groups(group_near_copies(files), number, seed)
    folds = []
    for place in range(number):
        folder = work_dir / f'fold_{place}'
        unseen = {table.image_ids[row] for row in np.flatnonzero(part == place)}
        cfg = fold_config(config, folder, images, without(dataset, unseen), table.class_names)
        print(f'fold {place + 1} of {number}: {folder}', flush=True)
        folds.append(Fold(_train(cfg, folder), list(unseen)))
    return folds


def split_groups(groups: Sequence[int], number: int, seed: int) -> np.ndarray:
    """Part of each image, in [0, number): those of a group stay together, the largest first.

    Example:
        >>> part = split_groups([0, 0, 0, 1, 2, 3], 2, seed=0)
        >>> np.bincount(part), len(set(part[:3]))
        (array([3, 3]), 1)
    """
    group = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(group)
    order = np.random.default_rng(seed).permutation(len(sizes))
    part, filled = np.zeros(len(sizes), np.int64), np.zeros(number, np.int64)
    for each in order[np.argsort(-sizes[order], kind='stable')]:
        part[each] = filled.argmin()
        filled[part[each]] += sizes[each]
    return part[group]


def without(dataset: dict[str, Any], image_ids: set[Any]) -> dict[str, Any]:
    """Annotations without some of the images.

    Example:
        >>> label = dict(id=1, image_id=7)
        >>> dataset = dict(images=[dict(id=7), dict(id=8)], annotations=[label], categories=[])
        >>> without(dataset, {7})['annotations']
        []
    """
    kept = {
        'images': [each for each in dataset['images'] if each['id'] not in image_ids],
        'annotations': [
            each for each in dataset['annotations'] if each['image_id'] not in image_ids
        ],
    }
    return {**dataset, **kept}


def fold_config(
    config: str, folder: Path, images: str, dataset: dict[str, Any], classes: Sequence[str]
) -> Config:
    """Write annotations and config of a fold; the config trains on them and validates nothing."""
    cfg = load_config(config)
    check_split(cfg, 'train')
    parts = datasets_of(cfg, 'train')
    if len(parts) != 1:
        raise ConfigError(f'{config} trains on {len(parts)} data sets: --folds takes one.')
    known = (parts[0].get('metainfo') or {}).get('classes')
    if known is not None and set(known) != set(classes):
        raise ConfigError(
            f'{config} trains the classes {", ".join(known)}, the annotations have '
            f'{", ".join(classes)}: give a config for these.'
        )
    path = folder / 'train.json'
    write_json(path, dataset)
    parts[0].update(
        data_root='',
        ann_file=os.path.abspath(path),
        data_prefix=dict(img=os.path.join(os.path.abspath(images), '')),
        metainfo=dict(classes=tuple(classes)),
    )
    for split in ('val', 'test'):  # labels that the detector is to judge choose no checkpoint
        for data in datasets_of(cfg, split):
            data.update({key: parts[0][key] for key in ('data_root', 'ann_file', 'data_prefix')})
            data.update(metainfo=parts[0]['metainfo'])
    for key in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg[key] = None
    cfg.test_evaluator = dict(
        type='gfl_det.CocoMetric', ann_file=os.path.abspath(path), metric='bbox'
    )
    hooks = cfg.get('default_hooks') or {}
    if isinstance(hooks.get('checkpoint'), dict):
        hooks['checkpoint'].update(save_best=None, max_keep_ckpts=1)
    cfg.work_dir = str(folder)
    write_text(folder / OWN_CONFIG, cfg.pretty_text)
    return cfg


def _keep_settings(work_dir: Path, config: str, annotations: str, number: int, seed: int) -> None:
    """Note what the trainings are made for; refuse to go on with others'."""
    settings = dict(
        config=config, annotations=os.path.abspath(annotations), folds=number, seed=seed
    )
    path = work_dir / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text(encoding='utf-8'))
        if before != settings:
            changed = ', '.join(key for key in settings if before.get(key) != settings[key])
            raise ConfigError(
                f'{work_dir} holds trainings with another {changed}: name another --work-dir.'
            )
        return
    write_json(path, settings, indent=1)


def _train(cfg: Config, folder: Path) -> str:
    """Train until the last epoch, and return the checkpoint."""
    epochs = (cfg.get('train_cfg') or {}).get('max_epochs')
    done = newest_checkpoint(folder).found
    if done is None or done.epoch != epochs or epochs is None:
        command = [sys.executable, '-m', 'gfl_det', 'train', str(folder), '--resume']
        if subprocess.run(command).returncode:
            raise ConfigError(
                f'The training in {folder} has failed, see above: the same command goes on there.'
            )
        done = newest_checkpoint(folder).found
    if done is None:
        raise ConfigError(f'The training in {folder} has left no checkpoint.')
    return str(done.path)


def detect_folds(
    folds: Sequence[Fold],
    split: Split,
    device: str | None = None,
    batch_size: int = 1,
    show_progress: bool = True,
) -> UncertainDetections:
    """Run the detector of each fold on the images that it was not trained on.

    Args:
        folds: Trained folds of the split's images.
        split: Images with gt boxes.
        device: ``cpu``, ``cuda`` ...; None: the best available.
        batch_size: Images per forward pass.
        show_progress: Show progress on standard error.
    """
    place = {image_id: index for index, image_id in enumerate(split.gts.image_ids)}
    parts = []
    for fold in folds:
        chosen = sorted(place[image_id] for image_id in fold.image_ids)
        part = Split(split.gts.of_images(chosen), [split.files[index] for index in chosen])
        detector = GFLInferencer(fold.checkpoint, device=device, level=None)
        found = detect_unsuppressed(detector, part, batch_size, show_progress)
        parts.append(found._replace(image=np.array(chosen, np.int64)[found.image]))
    return UncertainDetections(*(np.concatenate(columns) for columns in zip(*parts)))


def seen_in_training(checkpoint: str, config: str | None, split: Split) -> str | None:
    """Warning that a detector was trained on the images whose labels it is to check, or None.

    Images are the same if they have the same id and file name, unless both files exist and differ:
    many data sets number the images of each split from 1.

    Args:
        checkpoint: File or work dir; names and addresses refer to published weights.
        config: Config to use instead of the one in the checkpoint.
        split: Images and labels to check.
    """
    try:
        if config is not None or os.path.isdir(checkpoint):
            cfg = load_config(config or checkpoint)
        elif Path(checkpoint).is_file():
            meta = load_file(checkpoint, 'cpu').get('meta') or {}
            cfg = Config(parse(str(meta.get('cfg') or '')))  # reads values without executing code
        else:
            return None
        trained = [
            (read_annotations(path), image_folder(dataset))
            for dataset in datasets_of(cfg, 'train')
            if (path := annotation_path(dataset)) and Path(path).is_file()
        ]
    except (GFLDetError, SyntaxError, ValueError):
        return None  # errors are reported when the detector is loaded
    files = dict(zip(split.gts.image_keys, split.files))
    common = {
        key
        for table, folder in trained
        for image_id, name in zip(table.image_ids, table.file_names)
        if (key := image_key(image_id, name)) in files
        and not (folder and _differ(Path(folder, name), files[key]))
    }
    if not common:
        return None
    return (
        f'{checkpoint} was trained on {len(common)} of the {len(files)} images, and a detector '
        'repeats the errors that it has learnt: take --folds K.'
    )


def _differ(one: Path, other: Path) -> bool:
    """Whether both files exist and have different contents."""
    if not (one.is_file() and other.is_file()):
        return False
    return not one.samefile(other) and not filecmp.cmp(one, other, shallow=False)
