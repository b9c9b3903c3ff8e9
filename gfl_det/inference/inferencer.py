"""The inferencer: ``GFLInferencer('epoch_12.pth')('pictures/')`` runs a trained detector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.structures import InstanceData
from torch import Tensor

from gfl_det.errors import ConfigError, DataError
from gfl_det.inference.loading import load_detector
from gfl_det.inference.optimize import optimize_for_inference
from gfl_det.inference.sources import Item
from gfl_det.inference.stream import ImageDetector, PreparedImage, check_share
from gfl_det.inference.tiles import TileGrid
from gfl_det.models.heads import GFLHead
from gfl_det.utils.choices import DTYPES


class GFLInferencer(ImageDetector):
    """A trained detector that runs on images and reports the uncertainty of each box edge.

    The results are described in :mod:`.results`. Any detector of mmdet works: mmdet's ``GFLHead``
    is built as gfl_det's, which gives the same boxes; other heads give boxes and scores only.

    Args:
        checkpoint: File, URL, or name of published weights, such as ``gfl_r50_fpn_1x_coco``, which
            are downloaded once; ``gfl-det models`` lists them.
        config: File, name of a shipped config, or a config. None: the config that mmengine stored
            in the checkpoint; it is parsed and never executed.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; None: the best available.
        score_thr: Minimum score before calibration, in [0, 1]; None: the config's value.
        level: Share of gt edges that the intervals should contain; None: the config's value, or no
            intervals if it sets none.
        calibrator: Score calibrator file from ``gfl-det calibrate``; None: the config's, if any.
        intervals: Interval calibrator file from ``gfl-det intervals``; None: the config's, if any.
        distributions: Keep ``edge_logits``, ``bin_widths`` and ``prior_centres`` in results.
        joint: Let the intervals contain whole boxes, all four gt edges at once, at the level; needs
            ``intervals``.
        operating_point: File of cuts from ``gfl-det operate``, below which boxes are dropped; None:
            the config's, if any.
        with_class_scores: Add ``class_scores (N, C)`` to results: every class's score of each box.
        tile: Side of square tiles in px, or their height and width: larger pictures are detected in
            such tiles, ``batch_size`` at a time, and these joined (:mod:`.tiles`); None: whole.
        overlap: Least overlap of tiles in px, best above the size of most objects; None: a fifth.
        optimize: ``float32``, ``bfloat16`` or ``float16``: run the copy made by
            :func:`.optimize_for_inference` in this dtype. None: run the detector itself.

    Raises:
        GFLDetError: If a file is missing or damaged, the checkpoint does not fit the config, or the
            device does not exist.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        config: str | Path | Config | None = None,
        *,
        device: str | None = None,
        score_thr: float | None = None,
        level: float | None = 0.9,
        calibrator: str | Path | None = None,
        intervals: str | Path | None = None,
        distributions: bool = False,
        joint: bool = False,
        operating_point: str | Path | None = None,
        with_class_scores: bool = False,
        tile: int | tuple[int, int] | None = None,
        overlap: int | None = None,
        optimize: str | None = None,
    ) -> None:
        settings = dict(
            score_thr=score_thr,
            with_uncertainty=True,
            with_distribution=distributions,
            interval_level=level,
            calibrator=None if calibrator is None else str(calibrator),
            interval_calibrator=None if intervals is None else str(intervals),
            interval_joint=True if joint else None,
            operating_point=None if operating_point is None else str(operating_point),
            with_class_scores=True if with_class_scores else None,
        )
        if score_thr is not None:
            check_share(score_thr, 'score_thr')
        if level is not None and not (_is_number(level) and 0 < level < 1):
            raise ConfigError(f'level must lie between 0 and 1, not {level!r}.')
        if optimize not in (None, *DTYPES):
            raise ConfigError(f'optimize must be one of {", ".join(DTYPES)}, not {optimize!r}.')
        if tile is None and overlap is not None:
            raise ConfigError(f'overlap={overlap!r} is of tiles: give tile too.')
        self.tiling = None if tile is None else TileGrid.of(tile, overlap)
        loaded = load_detector(checkpoint, config, device or get_device(), settings)
        self.model, self.classes, self.level = loaded.model, loaded.classes, loaded.level
        head = getattr(self.model, 'bbox_head', self.model)
        if not isinstance(head, GFLHead):
            wishes = {'class scores': with_class_scores, 'cuts': operating_point, 'tiles': tile}
            for what, wish in wishes.items():
                if wish:
                    raise ConfigError(
                        f'The {type(head).__name__} of {checkpoint} takes no {what}, GFL heads of '
                        'gfl_det do: leave them out.'
                    )
        if optimize is not None:
            self.model = optimize_for_inference(self.model, getattr(torch, optimize))
        self.score_thr = score_thr
        self._decoding, self._prepare = _split_pipeline(loaded.pipeline)
        self._channels = _channels(self.model, dict(self._decoding)['flag'])

    @contextmanager
    def _kept_from(self, score_thr: float | None) -> Iterator[None]:
        if score_thr is None:
            yield
            return
        before = self.score_thr
        # Two-stage detectors take boxes from roi_head; detectors without NMS have no score_thr.
        heads = [getattr(self.model, name, None) for name in ('roi_head', 'bbox_head')]
        head = next((each for each in heads if each is not None), None)
        settings: dict[str, Any] = getattr(head, 'test_cfg', None) or {}
        own = {key: value for key, value in settings.items() if key == 'score_thr'}
        self.score_thr = score_thr
        settings.update(dict.fromkeys(own, score_thr))
        try:
            yield
        finally:
            self.score_thr = before
            settings.update(own)

    def _preprocess(self, item: Item) -> PreparedImage:
        assert item.image is not None  # items without an image are never prepared
        size = item.image.shape[:2]
        given = dict(img=item.image, img_path=item.source, img_id=0, img_shape=size, ori_shape=size)
        try:
            data = self._prepare({**given, 'height': size[0], 'width': size[1]})
        except Exception as error:  # each transform raises its own types
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise DataError(
                f'{item.source} ({size[1]} x {size[0]} px) cannot be processed by the test '
                f'pipeline: {reason[0]}'
            ) from error
        return PreparedImage(tuple(data['inputs'].shape), data)

    @torch.inference_mode()
    def _predict(self, batch: list[PreparedImage]) -> list[InstanceData]:
        data = {key: [each.data[key] for each in batch] for key in ('inputs', 'data_samples')}
        found = [_on_cpu(each.pred_instances) for each in self.model.test_step(data)]
        return [_at_least(each, self.score_thr) for each in found]


def _split_pipeline(pipeline: list[dict[str, Any]]) -> tuple[tuple[tuple[str, Any], ...], Any]:
    """Split a test pipeline into decoding options and transforms; annotations are not loaded.

    Raises:
        ConfigError: If a step cannot be built, or no step reads an image.
    """
    kinds = [str(step['type']).rpartition('.')[2] for step in pipeline]
    if 'LoadImageFromFile' not in kinds:
        raise ConfigError(f'The test pipeline has no LoadImageFromFile, only {", ".join(kinds)}.')
    loader = pipeline[kinds.index('LoadImageFromFile')]
    decoding = (
        ('flag', loader.get('color_type', 'color')),
        ('backend', loader.get('imdecode_backend', 'cv2')),
    )
    rest = [step for kind, step in zip(kinds, pipeline) if not kind.startswith('Load')]
    try:
        steps = Compose([dict(step) for step in rest])
    except Exception as error:  # each transform raises its own types
        raise ConfigError(f'The test pipeline cannot be built: {error}') from error
    if loader.get('to_float32'):
        return decoding, lambda given: steps({**given, 'img': given['img'].astype(np.float32)})
    return decoding, steps


def _channels(model: torch.nn.Module, flag: str) -> int:
    """Number of image channels that the detector expects, given the pipeline's colour flag."""
    if flag.startswith('grayscale'):
        return 1
    mean = getattr(model.data_preprocessor, 'mean', None)
    if not flag.startswith('unchanged'):
        return 3
    if isinstance(mean, Tensor) and mean.numel() > 1:
        return mean.numel()
    layers = getattr(model, 'backbone', model).modules()
    first = next((each for each in layers if isinstance(each, torch.nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)


def _at_least(found: InstanceData, score: float | None) -> InstanceData:
    """Filter by score: detectors without NMS, such as DETR, ignore ``score_thr``."""
    return found if score is None else found[found.get('raw_scores', found.scores) >= score]


def _on_cpu(found: InstanceData) -> InstanceData:
    """Move detections to the CPU and unwrap mmdet's box types to plain tensors."""
    plain = InstanceData()
    for name, value in found.items():
        value = getattr(value, 'tensor', value)
        plain[name] = value.cpu() if isinstance(value, Tensor) else value
    return plain
