"""Inference in one line: ``GFLInferencer('epoch_12.pth')('pictures/')``."""

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
from gfl_det.utils.choices import DTYPES


class GFLInferencer(ImageDetector):
    """A trained detector in use. Each box comes with what is known of its edges.

    What results hold, and what it means, is in :mod:`.results`. Any detector of mmdet can be run; a
    head of mmdet's ``GFLHead`` is built as gfl_det's, which gives the same boxes; heads of other
    kinds give boxes and scores alone.

    Args:
        checkpoint: a file, an address, or the name of published weights, such as
            ``gfl_r50_fpn_1x_coco``, which are fetched once; ``gfl-det models`` lists them.
        config: a file, the name of a shipped config, or a config. None: the one that mmengine wrote
            into the checkpoint, which is read as data: nothing in it is run.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; None: the best there is.
        score_thr: least score, before calibration, in [0, 1]; None: that of the config.
        level: share of true edges that intervals are meant to hold; None: that of the config, if it
            has one, or no intervals.
        calibrator: file of ``gfl-det calibrate`` for scores; None: that of the config, if any.
        intervals: file of ``gfl-det intervals`` for intervals; None: that of the config, if any.
        distributions: keep ``edge_logits``, ``bin_widths`` and ``prior_centres`` in results.
        joint: intervals hold whole boxes, all four true edges at once, at the level; needs
            ``intervals``.
        optimize: ``float32``, ``bfloat16`` or ``float16``: run the copy that
            :func:`.optimize_for_inference` makes.

    Raises:
        GFLDetError: a file is missing or damaged, checkpoint and config do not fit each other, or
            the device does not exist.
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
        )
        if score_thr is not None:
            check_share(score_thr, 'score_thr')
        if level is not None and not (_is_number(level) and 0 < level < 1):
            raise ConfigError(f'level is a share between 0 and 1, not {level!r}.')
        if optimize not in (None, *DTYPES):
            raise ConfigError(f'optimize is one of {", ".join(DTYPES)}, not {optimize!r}.')
        loaded = load_detector(checkpoint, config, device or get_device(), settings)
        self.model, self.classes, self.level = loaded.model, loaded.classes, loaded.level
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
        # Of two stages the second gives the boxes; detectors without suppression read none.
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
        assert item.image is not None  # or it is not asked for
        size = item.image.shape[:2]
        given = dict(img=item.image, img_path=item.source, img_id=0, img_shape=size, ori_shape=size)
        try:
            data = self._prepare({**given, 'height': size[0], 'width': size[1]})
        except Exception as error:  # each transform has its own kinds
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise DataError(
                f'{item.source} of {size[1]} x {size[0]} px cannot be prepared as the test '
                f'pipeline says: {reason[0]}'
            ) from error
        return PreparedImage(tuple(data['inputs'].shape), data)

    @torch.inference_mode()
    def _predict(self, batch: list[PreparedImage]) -> list[InstanceData]:
        data = {key: [each.data[key] for each in batch] for key in ('inputs', 'data_samples')}
        found = [_on_cpu(each.pred_instances) for each in self.model.test_step(data)]
        return [_at_least(each, self.score_thr) for each in found]


def _split_pipeline(pipeline: list[dict[str, Any]]) -> tuple[tuple[tuple[str, Any], ...], Any]:
    """How files are decoded, and what is done with an image then; annotations are not read.

    Raises:
        ConfigError: a step cannot be built, or no step reads an image.
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
    except Exception as error:  # each transform has its own kinds
        raise ConfigError(f'The test pipeline cannot be built: {error}') from error
    if loader.get('to_float32'):
        return decoding, lambda given: steps({**given, 'img': given['img'].astype(np.float32)})
    return decoding, steps


def _channels(model: torch.nn.Module, flag: str) -> int:
    """How many channels of an image the detector takes, as its pipeline reads files."""
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
    """Detections of a score; detectors without suppression, as DETR, read no ``score_thr``."""
    return found if score is None else found[found.get('raw_scores', found.scores) >= score]


def _on_cpu(found: InstanceData) -> InstanceData:
    """Detections as CPU tensors; boxes of mmdet's box types as plain ones."""
    plain = InstanceData()
    for name, value in found.items():
        value = getattr(value, 'tensor', value)
        plain[name] = value.cpu() if isinstance(value, Tensor) else value
    return plain
