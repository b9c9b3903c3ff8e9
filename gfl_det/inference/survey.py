"""Survey of unlabelled pictures: what a detector finds in each, and what it looks like to it.

The look of a picture is the mean of the neck's channels over each level, which costs nothing beside
the detection.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.datasets.formats.own_data import BITS, sign_of
from gfl_det.errors import DataError
from gfl_det.evaluation.detections import (
    detections_from_coco,
    gts_from_coco,
    gts_of_table,
    read_annotations,
    read_json,
    result_column,
)
from gfl_det.evaluation.label_evidence import UncertainDetections
from gfl_det.evaluation.shown import path_ends
from gfl_det.inference.inferencer import GFLInferencer
from gfl_det.inference.sources import VIDEO_ENDINGS, ImageSource
from gfl_det.inference.stream import PreparedImage
from gfl_det.ops.boxes import xyxy_to_xywh
from gfl_det.utils.console import Progress


class PictureSurvey(NamedTuple):
    """Detections and features of I pictures that could be read."""

    names: list[str]  # I, paths or addresses
    found: UncertainDetections
    features: np.ndarray  # (I, D)


class SurveyInferencer(GFLInferencer):
    """Inferencer whose ``instances`` also carry ``features (D,)``, the pooled output of the neck.

    Args:
        checkpoint: As of :class:`GFLInferencer`.
        config: As of :class:`GFLInferencer`.
        **options: As of :class:`GFLInferencer`.
    """

    def __init__(self, checkpoint: str | Path, config: Any = None, **options: Any) -> None:
        super().__init__(checkpoint, config, **options)
        self._pooled = torch.empty(0)
        layer = getattr(self.model, 'neck', None) or self.model.backbone
        layer.register_forward_hook(self._pool)

    def _pool(self, layer: torch.nn.Module, given: Any, output: Any) -> None:
        levels = [output] if isinstance(output, Tensor) else output
        self._pooled = torch.cat([level.float().mean((2, 3)) for level in levels], 1).cpu()

    def _predict(self, batch: list[PreparedImage]) -> list[InstanceData]:
        found = super()._predict(batch)
        for each, features in zip(found, self._pooled):
            each.set_metainfo(dict(features=features.numpy()))
        return found


def check_pictures(sources: Sequence[ImageSource]) -> None:
    """Refuse videos, whose frames no annotation tool takes.

    Raises:
        DataError: If a source is a video.
    """
    for source in sources:
        if Path(source.name).suffix.lower() in VIDEO_ENDINGS:
            raise DataError(f'{source.name} is a video: save the frames to choose from as images.')


def survey(
    detector: SurveyInferencer,
    sources: Sequence[ImageSource],
    batch_size: int = 1,
    show_progress: bool = True,
) -> PictureSurvey:
    """Detect in pictures; those that cannot be read are named and left out.

    Args:
        detector: Detector with a GFL head.
        sources: Pictures, from :meth:`GFLInferencer.find`.
        batch_size: Images per forward pass.
        show_progress: Show progress on standard error.

    Raises:
        DataError: If there is a video, no picture can be read, or the head gives no uncertainty.
    """
    check_pictures(sources)
    names: list[str] = []
    errors: list[str] = []
    features, parts = [], []
    with Progress(len(sources), 'images', show_progress) as bar:
        for result in detector.stream(sources, batch_size=batch_size):
            bar.advance()
            if result.error is not None:
                errors.append(result.error)
                continue
            found = result.instances
            if len(result) and 'edge_std' not in found:
                raise DataError(
                    'The head of this detector gives no uncertainty of edges: take a GFL head of '
                    'gfl_det.'
                )
            features.append(found.features)
            parts.append(uncertain_detections(found, len(names)))
            names.append(result.name)
    if not names:
        raise DataError(errors[0] if errors else 'There is no image: name some.')
    for error in errors:
        print(f'warning: {error}', file=sys.stderr)
    detections = UncertainDetections(*(np.concatenate(columns) for columns in zip(*parts)))
    return PictureSurvey(names, detections, np.stack(features))


def uncertain_detections(found: InstanceData, image: int = 0) -> UncertainDetections:
    """Arrays of one picture's detections.

    Args:
        found: Detections with ``edge_std``, or none.
        image: Index of the picture.
    """
    if not len(found):
        none = np.zeros(0, np.int64)
        return UncertainDetections(none, none, np.zeros((0, 4)), np.zeros(0), np.zeros((0, 4)))
    return UncertainDetections(
        np.full(len(found), image),
        found.labels.numpy().astype(np.int64),
        xyxy_to_xywh(found.bboxes.numpy().astype(float)),
        found.scores.numpy().astype(float),
        found.edge_std.numpy().astype(float),
    )


def read_results(results: str, names: Sequence[str]) -> tuple[UncertainDetections, tuple[str, ...]]:
    """Read what ``gfl-det infer --out`` wrote for some pictures, and the names of the classes.

    Args:
        results: Path of the file.
        names: Paths of the pictures; those that the file does not name have no detection.

    Raises:
        DataError: If the file holds no results with ``edge_std`` and ``file_name``, or names a
            picture that is not given.
    """
    entries = read_json(results)
    is_list = isinstance(entries, list) and all(isinstance(each, dict) for each in entries)
    kinds: dict[Any, str] = {}
    if is_list:
        if not all('file_name' in each for each in entries):
            raise DataError(
                f'{results} does not name its images: write it with gfl-det infer --out, without '
                '--annotations.'
            )
        place = _places([str(each['file_name']) for each in entries], names)
        lost = next((each['file_name'] for each, at in zip(entries, place) if at is None), None)
        if lost is not None:
            raise DataError(
                f'{results} has {lost}, which is not among the images: name those that were '
                'detected in.'
            )
        entries = [{**each, 'image_id': at} for each, at in zip(entries, place)]
        for each in entries:
            kind = each.get('category_id')
            if isinstance(kind, (int, str)):
                kinds[kind] = str(each.get('class', kind))
    ids = sorted(kinds, key=lambda kind: (isinstance(kind, str), kind))
    dataset = dict(
        images=[dict(id=index, file_name=name) for index, name in enumerate(names)],
        categories=[dict(id=each, name=str(each)) for each in ids or [0]],
        annotations=[],
    )
    found = detections_from_coco(entries, gts_from_coco(dataset, results), results)
    std = result_column(entries, 'edge_std', (4,), results, least=0)
    if std is None and entries:
        raise DataError(
            f'{results} has no edge_std: write it with gfl-det infer, from a detector with a GFL '
            'head.'
        )
    stds = np.zeros((0, 4)) if std is None else std
    return UncertainDetections(*found, stds), tuple(kinds[each] for each in ids)


def listed_pictures(
    annotations: str, names: Sequence[str], classes: Sequence[str] | None = None
) -> list[str]:
    """Pictures that a COCO file lists, whether or not they have boxes.

    Args:
        annotations: Path of the file.
        names: Paths of the pictures to find.
        classes: Classes that the file must have; None: any.

    Raises:
        DataError: If it is not a COCO file, lacks a class, or lists none of the pictures.
    """
    table = read_annotations(annotations)
    if classes is not None:
        gts_of_table(table).of_classes(classes, annotations)
    place = _places(table.file_names, names)
    found = [names[at] for at in place if at is not None]
    if not found:
        raise DataError(
            f'None of the {len(place)} images of {annotations} is among those given: name the '
            'folder of labelled images instead.'
        )
    if len(found) < len(place):
        print(
            f'warning: {len(place) - len(found)} of the {len(place)} images of {annotations} are '
            'not among those given: what they look like does not count.',
            file=sys.stderr,
        )
    return found


def _places(wanted: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """Index of the picture that each path names, by the longest part of its end that is unique."""
    times = Counter(end for name in names for end in path_ends(name))
    place = {
        end: index for index, name in enumerate(names) for end in path_ends(name) if times[end] == 1
    }
    return [next((place[end] for end in path_ends(each) if end in place), None) for each in wanted]


def copy_features(names: Sequence[str]) -> np.ndarray:
    """Features ``(I, 64)`` that tell near copies, without a detector: where brightness falls.

    All values of a picture are of one size; uniform pictures and those that cannot be read are 0.
    Two pictures of which k of 64 values differ have the similarity exp(-k / 16).

    Args:
        names: Paths of the pictures.
    """
    signs = [sign_of(Path(name)) for name in names]
    return np.array(
        [np.zeros(BITS) if sign is None else (2.0 * sign - 1) / 2**0.5 for sign in signs],
        np.float32,
    )
