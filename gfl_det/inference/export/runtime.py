"""Runtimes for exported detectors, ONNX Runtime and OpenVINO: pictures in, detections out.

A file contains its preprocessing, class names and NMS settings, so no config is needed. OpenVINO
files have its own format, in float32 or int8.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmcv.ops import batched_nms
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from numpy.typing import NDArray
from torch import Tensor

from gfl_det.calibration.apply import reach_cuts
from gfl_det.errors import DataError
from gfl_det.inference.export.graph import INPUTS, Picture, PreparedBatch
from gfl_det.inference.export.onnx_file import DECODING, KEY, Description, require
from gfl_det.inference.results import EDGE_FIELDS
from gfl_det.inference.sources import Item
from gfl_det.inference.stream import ImageDetector, PreparedImage

Arrays = Mapping[str, NDArray[Any]]
# Outputs that keep their names in results.
EXTRAS = (*EDGE_FIELDS, 'edge_logits', 'bin_widths', 'prior_centres')
UNSEEN = {'counts'}  # outputs that results do not include


class ExportedDetector(ImageDetector):
    """Base class of the runtimes; called like :class:`~gfl_det.inference.GFLInferencer`.

    Args:
        description: Metadata of the file.
    """

    _decoding = (('flag', 'color'), ('backend', 'cv2'))  # defaults of test pipelines

    def __init__(self, description: Description) -> None:
        self.description = description
        self.classes, self.level = tuple(description.classes), description.level

    @abstractmethod
    def run(self, inputs: PreparedBatch) -> Arrays:
        """Run the graph; returns its outputs by name."""

    def detect(self, pictures: Sequence[Picture]) -> list[InstanceData]:
        """Detect in pictures that form one batch.

        Args:
            pictures: Each ``(H, W, 3)`` uint8, BGR.

        Returns:
            Per picture ``bboxes (N, 4)`` xyxy px, ``scores (N,)`` and ``labels (N,)`` by descending
            score, ``raw_scores`` if a calibrator is included, and the exported ``edge_*`` fields
            and ``class_scores (N, C)``, see :mod:`..inference.results`.
        """
        return self.finish(self.run(self.description.preprocessing(pictures)))

    def finish(self, outputs: Arrays) -> list[InstanceData]:
        """Detections from the outputs of :meth:`run`, see :meth:`detect`."""
        finish = _detections if self.description.nms else self._suppressed
        results = [finish(outputs, index) for index in range(len(outputs['boxes']))]
        cuts = self.description.settings.get('cuts')
        return results if cuts is None else [each[reach_cuts(each, cuts)] for each in results]

    def _preprocess(self, item: Item) -> PreparedImage:
        assert item.image is not None  # items without an image are never prepared
        return PreparedImage(
            self.description.preprocessing.resized(*item.image.shape[:2]), item.image
        )

    def _predict(self, batch: list[PreparedImage]) -> list[InstanceData]:
        return self.detect([each.data for each in batch])

    def _suppressed(self, outputs: Arrays, image: int) -> InstanceData:
        """Post-processing of the head, from boxes and scores of all cells."""
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
        every = settings.get('with_class_scores', False)
        if every:
            found.class_scores = scores[cell]
        if self.description.calibrated:
            calibrated = torch.from_numpy(outputs['calibrated_scores'][image])
            found.raw_scores, found.scores = values, calibrated[cell, label]
            if every:
                found.raw_class_scores, found.class_scores = scores[cell], calibrated[cell]
            found = found[found.scores.sort(descending=True, stable=True).indices]
        return found


class OnnxDetector(ExportedDetector):
    """Runs a detector of ``gfl-det export`` in ONNX Runtime.

    Args:
        path: The ``.onnx`` file.
        providers: Execution providers of ONNX Runtime, in order of preference.
        threads: Number of CPU threads; 0: one per core.

    Raises:
        SetupError: If onnxruntime is not installed.
        DataError: If the file is missing or was not exported by gfl_det.
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
        # Threads that spin while waiting would occupy the CPU.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        try:
            self.session = runtime.InferenceSession(os.fspath(path), options, list(providers))
        except Exception as error:  # ONNX Runtime has many exception classes
            raise DataError(f'{path} cannot be run: {str(error).splitlines()[0]}') from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        super().__init__(Description.from_json(metadata.get(KEY), os.fspath(path)))

    def run(self, inputs: PreparedBatch) -> Arrays:
        outputs = self.session.run(self.description.outputs, dict(zip(INPUTS, inputs)))
        return dict(zip(self.description.outputs, outputs))


def check_file(path: str | os.PathLike[str], ending: str) -> None:
    """Check that a file exists and has this extension.

    Raises:
        DataError: If the file is missing or has another extension.
    """
    name = os.fspath(path)
    if not name.endswith(ending):
        raise DataError(f'{name} does not end in {ending}: give a file that gfl-det export wrote.')
    if not os.path.isfile(name):
        raise DataError(f'{name} does not exist: write it with gfl-det export.')


def _detections(outputs: Arrays, image: int) -> InstanceData:
    """Detections of one image from a graph with NMS."""
    count = int(outputs['counts'][image])
    kept = {
        name: torch.from_numpy(outputs[name][image][:count]) for name in outputs.keys() - UNSEEN
    }
    return InstanceData(bboxes=kept.pop('boxes'), **kept)


def _candidates(scores: Tensor, levels: Tensor, settings: ConfigDict) -> Tensor:
    """Pairs ``(N, 2)`` of cell and class above the threshold, at most ``nms_pre`` per level."""
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


# Node names kept in float32, see onnx_file: decoding with its integral; in the head, edge scales
# and, for GFLv2, distribution statistics, neither of which is a module; GFLv2's quality network
# (DGQP); the calibrator, whose maps are steep.
FLOAT = (rf'^{DECODING}/.*', r'^bbox_head/.*', r'^bbox_head\.reg_conf.*', r'^calibration[./].*')


class OpenVINODetector(ExportedDetector):
    """Runs a detector of ``gfl-det export --out FILE.xml`` in OpenVINO.

    Args:
        path: The ``.xml`` file, with its ``.bin`` beside it.
        device: OpenVINO device name.
        threads: Number of CPU threads; 0: OpenVINO's choice.

    Raises:
        SetupError: If openvino is not installed.
        DataError: If the file is missing or was not exported by gfl_det.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = 'CPU', threads: int = 0) -> None:
        openvino = require('openvino')
        check_file(path, '.xml')
        try:
            model = openvino.Core().read_model(os.fspath(path))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DataError(f'OpenVINO cannot read {path}: {reason}') from error
        text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
        super().__init__(Description.from_json(text, os.fspath(path)))
        # Without the hint OpenVINO computes in bfloat16 where the CPU supports it.
        options: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32'}
        if threads:
            options['INFERENCE_NUM_THREADS'] = threads
        self.model = openvino.compile_model(model, device, options)

    def run(self, inputs: PreparedBatch) -> Arrays:
        outputs = self.model(dict(zip(INPUTS, inputs)))
        return {name: outputs[name] for name in self.description.outputs}


def write_openvino(onnx_path: Path, path: Path, description: Description) -> None:
    """Convert an exported ONNX file to OpenVINO format, in float32.

    Args:
        onnx_path: File from :func:`.onnx_file.write_onnx`.
        path: Output ``.xml`` file; a ``.bin`` is written beside it.
        description: Metadata of the ONNX file.
    """
    openvino = require('openvino')
    _save(openvino, openvino.Core().read_model(onnx_path), path, description)


def write_int8(
    onnx_path: Path,
    path: Path,
    description: Description,
    pictures: Iterable[PreparedBatch],
    count: int,
) -> None:
    """Quantise an exported ONNX file after training and write it in OpenVINO format.

    Convolutions of backbone, neck and towers become int8, with ranges measured on pictures; layers
    that read distributions stay float32, see ``FLOAT``.

    Args:
        onnx_path: File from :func:`.onnx_file.write_onnx`.
        path: Output ``.xml`` file; a ``.bin`` is written beside it.
        description: Metadata of the ONNX file.
        pictures: Prepared pictures of the training split, one per batch.
        count: Number of pictures to measure ranges on.

    Raises:
        SetupError: If openvino or nncf is not installed.
    """
    nncf, openvino = require('nncf'), require('openvino')
    logging.getLogger('nncf').setLevel(logging.WARNING)  # it logs every excluded node
    data = nncf.Dataset(pictures, lambda prepared: dict(zip(INPUTS, prepared)))
    # Nodes that produce outputs are named after them.
    kept = [*FLOAT, *(f'^{name}$' for name in description.outputs)]
    model = nncf.quantize(
        openvino.Core().read_model(onnx_path),
        data,
        subset_size=count,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(patterns=kept, validate=False),
    )
    _save(openvino, model, path, dataclasses.replace(description, precision='int8'))


def _save(openvino: Any, model: Any, path: Path, description: Description) -> None:
    model.set_rt_info(description.to_json(), KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path, compress_to_fp16=False)
