"""Exported detectors in other runtimes: pictures in, detections out.

A file holds its preprocessing, its classes and the settings of its suppression; nothing of the
config is needed.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Union

import cv2
import numpy as np
import torch
from mmcv.ops import batched_nms
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .description import KEY, Description
from .extras import require
from .graph import INPUTS
from .preprocessing import Picture, Prepared

Source = Union[str, os.PathLike, Picture]
Arrays = Mapping[str, NDArray[Any]]
# Names in the graph and in results.
FIELDS = {
    'boxes': 'bboxes',
    'scores': 'scores',
    'labels': 'labels',
    'raw_scores': 'raw_scores',
    'edge_std': 'edge_std',
    'edge_entropy': 'edge_entropy',
    'edge_logits': 'edge_logits',
    'bin_widths': 'bin_widths',
    'prior_centres': 'prior_centres',
}
EXTRAS = ('edge_std', 'edge_entropy', 'edge_logits', 'bin_widths', 'prior_centres')


class ExportedDetector(ABC):
    """What the runtimes share.

    Args:
        description: of the file.
    """

    def __init__(self, description: Description) -> None:
        self.description = description

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        return tuple(self.description.classes)

    @abstractmethod
    def run(self, inputs: Prepared) -> Arrays:
        """The graph's outputs by name."""

    def detect(self, pictures: Sequence[Picture]) -> list[InstanceData]:
        """Detections of pictures that go through the network as one batch.

        Args:
            pictures: each ``(H, W, 3)`` uint8, BGR.

        Returns:
            Per picture ``bboxes (N, 4)`` xyxy px, ``scores (N,)``, ``labels (N,)`` by descending
            score, ``raw_scores`` where a calibrator is inside, and what was exported of
            ``edge_std``, ``edge_entropy``, ``edge_logits``, ``bin_widths`` and ``prior_centres``.
        """
        outputs = self.run(self.description.preprocessing(pictures))
        finish = _detections if self.description.nms else self._suppressed
        return [finish(outputs, index) for index in range(len(pictures))]

    def __call__(
        self, pictures: Source | Sequence[Source], batch_size: int = 1
    ) -> list[InstanceData]:
        """Detections of files or arrays.

        Args:
            pictures: one or several: paths, or ``(H, W, 3)`` uint8 BGR.
            batch_size: pictures that go through together. All of a batch are padded to the largest,
                and norms over a whole picture see the padding, so scores depend on it a little.

        Returns:
            See :meth:`detect`.

        Raises:
            DataError: a file is no picture.
        """
        single = isinstance(pictures, (str, os.PathLike, np.ndarray))
        sources: Sequence[Any] = [pictures] if single else pictures  # type: ignore[list-item, assignment]  # told apart above
        found: list[InstanceData] = []
        for first in range(0, len(sources), batch_size):
            found += self.detect([read(each) for each in sources[first : first + batch_size]])
        return found

    def _suppressed(self, outputs: Arrays, image: int) -> InstanceData:
        """What the head does behind its maps, from boxes and scores of all cells."""
        boxes, scores = (torch.from_numpy(outputs[name][image]) for name in ('boxes', 'scores'))
        settings = ConfigDict(self.description.settings)
        levels = torch.from_numpy(outputs['levels'])
        cell, label = _candidates(scores, levels, settings).unbind(1)
        smallest = settings.get('min_bbox_size', -1)
        if smallest >= 0:
            large = (boxes[cell, 2:] - boxes[cell, :2] > smallest).all(1)
            cell, label = cell[large], label[large]
        kept, values = torch.arange(len(cell)), scores[cell, label]
        if len(cell):
            rows, kept = batched_nms(boxes[cell], values, label, settings.get('nms'))
            values = rows[:, -1]
        limit = settings.get('max_per_img', -1)
        if limit > 0:
            kept, values = kept[:limit], values[:limit]
        cell, label = cell[kept], label[kept]
        found = InstanceData(bboxes=boxes[cell], scores=values, labels=label)
        for name in EXTRAS:
            if name in outputs:
                found[name] = torch.from_numpy(outputs[name][image])[cell]
        if self.description.calibrated:
            found.raw_scores = values
            found.scores = torch.from_numpy(outputs['calibrated_scores'][image])[cell, label]
            found = found[found.scores.sort(descending=True, stable=True).indices]
        return found


class OnnxDetector(ExportedDetector):
    """A detector of ``tools/export_onnx.py`` in ONNX Runtime.

    Args:
        path: the ``.onnx`` file.
        providers: execution providers of ONNX Runtime, best first.
        threads: of the processor; 0: as many as it has cores.

    Raises:
        SetupError: onnxruntime is missing.
        DataError: the file is none, or was not exported by gfl_det.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        providers: Sequence[str] = ('CPUExecutionProvider',),
        threads: int = 0,
    ) -> None:
        runtime = require('onnxruntime')
        check_file(path, '.onnx')
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = runtime.InferenceSession(os.fspath(path), options, list(providers))
        except Exception as error:  # ONNX Runtime has an exception class for each kind of failure
            raise DataError(f'{path} cannot be run: {str(error).splitlines()[0]}') from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        super().__init__(Description.from_json(metadata.get(KEY), os.fspath(path)))

    def run(self, inputs: Prepared) -> Arrays:
        outputs = self.session.run(self.description.outputs, dict(zip(INPUTS, inputs)))
        return dict(zip(self.description.outputs, outputs))


def read(source: Source) -> Picture:
    """A picture ``(H, W, 3)`` uint8, BGR, from a file; an array as it is.

    Raises:
        DataError: the file is missing or no picture, or the array has another shape or type.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise DataError(
                f'A picture is an array (H, W, 3) of uint8, not {source.shape} of {source.dtype}.'
            )
        return source
    try:
        content = np.fromfile(source, np.uint8)
    except OSError as error:
        raise DataError(f'{source} cannot be read: {error.strerror or error}.') from error
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if picture is None:
        raise DataError(f'{source} is no picture that OpenCV can decode.')
    return np.asarray(picture, np.uint8)


def check_file(path: str | os.PathLike[str], ending: str) -> None:
    """Check that a file exists and ends so.

    Raises:
        DataError: it does not.
    """
    name = os.fspath(path)
    if not name.endswith(ending):
        raise DataError(f'{name} does not end in {ending}: give what tools/export_onnx.py wrote.')
    if not os.path.isfile(name):
        raise DataError(f'{name} does not exist: write it with tools/export_onnx.py.')


def _detections(outputs: Arrays, image: int) -> InstanceData:
    """The detections of an image from a graph that suppresses."""
    count = int(outputs['counts'][image])
    found = InstanceData()
    for name, field in FIELDS.items():
        if name in outputs:
            found[field] = torch.from_numpy(outputs[name][image][:count].copy())
    return found


def _candidates(scores: Tensor, levels: Tensor, settings: ConfigDict) -> Tensor:
    """Pairs ``(N, 2)`` of cell and class above the threshold, ``nms_pre`` of a level at most."""
    pairs = (scores > settings.score_thr).nonzero()
    count = settings.get('nms_pre', -1)
    if count <= 0:
        return pairs
    kept = []
    for level in range(int(levels.max()) + 1):
        mine = pairs[levels[pairs[:, 0]] == level]
        if len(mine) > count:
            mine = mine[scores[mine[:, 0], mine[:, 1]].topk(count).indices.sort().values]
        kept.append(mine)
    return torch.cat(kept)
