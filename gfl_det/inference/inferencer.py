"""From one line to results: ``GFLInferencer('epoch_12.pth')('pictures/')``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.structures import InstanceData
from torch import Tensor

from ..errors import ConfigError, DataError
from ..progress import Progress
from .loading import load_detector
from .optimize import optimize_for_inference
from .results import ImageResult, Results
from .sources import Inputs, Item, Reading, Source, find_sources, read_items

# So many batches are read ahead, so that images of one size come together whatever their order.
WINDOW_BATCHES = 4
DTYPES = ('float32', 'bfloat16', 'float16')


class _Prepared(NamedTuple):
    """An image as the network takes it, and its place among those read ahead."""

    place: int
    data: dict[str, Any]  # inputs (3, H, W), data_samples


class GFLInferencer:
    """A trained detector in use. Each box comes with what is known of its edges.

    What results hold, and what it means, is in :mod:`.results`. Any detector of mmdet can be run; a
    head of mmdet's ``GFLHead`` is built as gfl_det's, which gives the same boxes; heads of other
    kinds give boxes and scores alone.

    Args:
        checkpoint: a file or an address.
        config: a file, the name of a shipped config, or a config. None: the one that mmengine wrote
            into the checkpoint, which is read as data: nothing in it is run.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; None: the best there is.
        score_thr: least score, before calibration, in [0, 1]; None: that of the config.
        level: share of true edges that intervals are meant to hold; None: that of the config, if it
            has one, or no intervals.
        calibrator: file of ``tools/calibrate.py`` for scores; None: that of the config, if any.
        intervals: file of ``tools/intervals.py`` for intervals; None: that of the config, if any.
        distributions: keep ``edge_logits``, ``bin_widths`` and ``prior_centres`` in results.
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
        optimize: str | None = None,
    ) -> None:
        settings = dict(
            score_thr=score_thr,
            with_uncertainty=True,
            with_distribution=distributions,
            interval_level=level,
            calibrator=None if calibrator is None else str(calibrator),
            interval_calibrator=None if intervals is None else str(intervals),
        )
        if score_thr is not None and not (_is_number(score_thr) and 0 <= score_thr <= 1):
            raise ConfigError(f'score_thr is a score from 0 to 1, not {score_thr!r}.')
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

    def __call__(
        self,
        inputs: Inputs,
        *,
        batch_size: int = 1,
        progress: bool = True,
        keep_images: bool = False,
        **reading: Any,
    ) -> Results:
        """Detect in images.

        Args:
            inputs: path of an image or a video, folder, glob, http address, array ``(H, W, 3)``
                uint8 BGR; or several of them.
            batch_size: images that go through the network together. Only images of one size do, so
                that results do not depend on it.
            progress: show it on standard error.
            keep_images: keep each image in its result.
            **reading: ``max_pixels``, ``recursive`` and ``every``, see :class:`.sources.Reading`.

        Returns:
            One result an image, in the order of the inputs. Those that could not be read hold an
            ``error``, and the others are done all the same.

        Raises:
            DataError: not one image could be read.
        """
        sources = self.find(inputs, **reading)
        results = Results()
        with Progress(sum(each.images for each in sources), 'images', progress) as bar:
            for result in self.stream(sources, batch_size=batch_size, keep_images=keep_images):
                results.images.append(result)
                bar.advance()
                if result.error is not None and progress and len(sources) > 1:
                    bar.say(f'warning: {result.error}')
        failed = results.failures
        if len(failed) == len(results):
            others = f' So it is with {len(failed) - 1} others.' if len(failed) > 1 else ''
            raise DataError(f'{failed[0].error}{others}')
        return results

    def find(self, inputs: Inputs, **reading: Any) -> list[Source]:
        """List the images and videos that inputs stand for; arguments as of a call."""
        return find_sources(inputs, Reading(**reading, decoding=self._decoding))

    def stream(
        self, sources: Iterable[Source], *, batch_size: int = 1, keep_images: bool = False
    ) -> Iterator[ImageResult]:
        """Results one after another, for videos and folders too large to keep them all.

        Args:
            sources: of :meth:`find`.
            batch_size: as in a call.
            keep_images: as in a call.
        """
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise ConfigError(f'batch_size is a whole number of at least 1, not {batch_size!r}.')
        items = read_items(sources)
        while window := list(islice(items, WINDOW_BATCHES * batch_size)):
            yield from self._detect(window, batch_size, keep_images)

    def _detect(self, items: list[Item], batch_size: int, keep: bool) -> list[ImageResult]:
        """Results of images that are read ahead, in their order."""
        results: dict[int, ImageResult] = {}
        by_size: dict[tuple[int, ...], list[_Prepared]] = {}
        for index, item in enumerate(items):
            try:
                prepared = _Prepared(index, self._preprocess(item))
            except DataError as error:
                results[index] = ImageResult(item.source, frame=item.frame, error=str(error))
                continue
            by_size.setdefault(tuple(prepared.data['inputs'].shape), []).append(prepared)
        for same in by_size.values():
            for first in range(0, len(same), batch_size):
                batch = same[first : first + batch_size]
                for prepared, found in zip(batch, self._predict(batch)):
                    result = self._result(items[prepared.place], found, keep)
                    results[prepared.place] = result
        return [results[index] for index in range(len(items))]

    def _preprocess(self, item: Item) -> dict[str, Any]:
        if item.image is None:
            raise DataError(str(item.error))
        size = item.image.shape[:2]
        given = dict(img=item.image, img_path=item.source, img_id=0, img_shape=size, ori_shape=size)
        try:
            return self._prepare({**given, 'height': size[0], 'width': size[1]})
        except Exception as error:  # each transform has its own kinds
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise DataError(
                f'{item.source} of {size[1]} x {size[0]} px cannot be prepared as the test '
                f'pipeline says: {reason[0]}'
            ) from error

    @torch.inference_mode()
    def _predict(self, batch: list[_Prepared]) -> list[InstanceData]:
        data = {key: [each.data[key] for each in batch] for key in ('inputs', 'data_samples')}
        found = [_on_cpu(each.pred_instances) for each in self.model.test_step(data)]
        return [_at_least(each, self.score_thr) for each in found]

    def _result(self, item: Item, found: InstanceData, keep: bool) -> ImageResult:
        assert item.image is not None  # or there were no detections
        height, width = item.image.shape[:2]
        return ImageResult(
            item.source,
            (height, width),
            found,
            self.classes,
            self.level if 'edge_low' in found else None,
            item.frame,
            image=item.image if keep else None,
        )


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
