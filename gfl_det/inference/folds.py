"""Out-of-fold detections: each image is processed by a detector that was not trained on it."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config

from gfl_det.compat.checkpoint import load_file
from gfl_det.engine.folds import Fold
from gfl_det.errors import GFLDetError
from gfl_det.evaluation.detections import image_key, read_annotations
from gfl_det.evaluation.label_evidence import UncertainDetections
from gfl_det.inference.coverage import Split, detect_unsuppressed
from gfl_det.inference.inferencer import GFLInferencer
from gfl_det.inference.stored_config import parse
from gfl_det.utils.config import annotation_path, datasets_of, image_folder, load_config


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
