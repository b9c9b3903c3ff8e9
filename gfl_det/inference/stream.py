"""Streaming detection on images of any kind, independent of what runs the network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from numbers import Integral, Real
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from mmengine.structures import InstanceData

from gfl_det.errors import ConfigError, DataError, GFLDetError
from gfl_det.inference.results import ImageResult, Results
from gfl_det.inference.sources import ImageSource, Inputs, Item, Reading, find_sources, read_items
from gfl_det.inference.tiles import TileGrid, join
from gfl_det.utils.console import Progress

# Batches read ahead, so that images of one size are batched together whatever their order.
WINDOW_BATCHES = 4


class PreparedImage(NamedTuple):
    """Image prepared for the network."""

    size: tuple[int, ...]  # only images of one size form a batch
    data: Any


class ImageDetector(ABC):
    """Base class of detectors on images: input lookup, batching, progress and error reports.

    Subclasses set ``classes`` (names in label order), ``level`` (of the intervals), and
    ``_decoding`` and ``_channels`` (see :class:`.sources.Reading`).
    """

    classes: tuple[str, ...]
    level: float | None
    tiling: TileGrid | None = None  # larger pictures are detected in tiles, and these joined
    _decoding: tuple[tuple[str, Any], ...]
    _channels: int = 3

    def __call__(
        self,
        inputs: Inputs,
        *,
        batch_size: int = 1,
        progress: bool = True,
        keep_images: bool = False,
        score_thr: float | None = None,
        **reading: Any,
    ) -> Results:
        """Detect in images.

        Args:
            inputs: Path of an image or video, folder, glob, http URL, PIL image, array
                ``(H, W, 3)`` uint8 BGR, tensor ``(3, H, W)`` RGB, or several of them.
            batch_size: Images per forward pass. Only images of equal size are batched, so that
                results do not depend on it.
            progress: Show progress on standard error.
            keep_images: Keep each image in its result.
            score_thr: Minimum score before calibration, in [0, 1]; None: the detector's value.
            **reading: ``max_pixels``, ``recursive`` and ``every``, see :class:`.sources.Reading`.

        Returns:
            One result per image, in input order. An image that cannot be read gives a result with
            an ``error`` and does not stop the others.

        Raises:
            ConfigError: If ``batch_size`` is less than 1.
            DataError: If none of the images could be read.
        """
        sources = self.find(inputs, **reading)
        results = Results()
        options: dict[str, Any] = dict(batch_size=batch_size, keep_images=keep_images)
        with Progress(sum(each.images for each in sources), 'images', progress) as bar:
            for note in filter(None, (each.note for each in sources if progress)):
                bar.say(f'warning: {note}')
            for result in self.stream(sources, score_thr=score_thr, **options):
                results.images.append(result)
                bar.advance()
                if result.error is not None and progress and len(sources) > 1:
                    bar.say(f'warning: {result.error}')
        failed = results.failures
        if len(failed) == len(results):
            others = f' Other failed inputs: {len(failed) - 1}.' if len(failed) > 1 else ''
            raise DataError(f'{failed[0].error}{others}')
        return results

    def find(self, inputs: Inputs, **reading: Any) -> list[ImageSource]:
        """List the images and videos that inputs refer to; arguments as for a call."""
        options: dict[str, Any] = dict(decoding=self._decoding, channels=self._channels)
        return find_sources(inputs, Reading(**reading, **options, mapped=self.tiling is not None))

    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        batch_size: int = 1,
        keep_images: bool = False,
        score_thr: float | None = None,
    ) -> Iterator[ImageResult]:
        """Yield results one by one, for videos and folders too large to keep in memory.

        Args:
            sources: Sources from :meth:`find`.
            batch_size: As for a call.
            keep_images: As for a call.
            score_thr: As for a call.
        """
        if score_thr is not None:
            check_share(score_thr, 'score_thr')
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise ConfigError(f'batch_size must be an integer of at least 1, not {batch_size!r}.')
        items = read_items(sources, self._channels)
        if self.tiling is not None:  # one picture at a time, a batch of tiles at a time
            for item in items:
                with self._kept_from(score_thr):
                    result = self._detect_tiles(item, self.tiling, batch_size, keep_images)
                yield result
            return
        while window := list(islice(items, WINDOW_BATCHES * batch_size)):
            with self._kept_from(score_thr):
                results = self._detect(window, batch_size, keep_images)
            yield from results

    @contextmanager
    def _kept_from(self, score_thr: float | None) -> Iterator[None]:
        """Context manager that sets the score threshold; None leaves it unchanged.

        Raises:
            ConfigError: If the detector has a fixed threshold.
        """
        if score_thr is not None:
            raise ConfigError(
                'The score_thr of an exported detector is fixed in its file: filter its results '
                f'with results.filter({score_thr:g}).'
            )
        yield

    @abstractmethod
    def _preprocess(self, item: Item) -> PreparedImage:
        """Prepare an image for the network.

        Raises:
            DataError: If the image cannot be prepared.
        """

    @abstractmethod
    def _predict(self, batch: list[PreparedImage]) -> list[InstanceData]:
        """Detect in images of equal size; returns detections in the same order."""

    def _detect(self, items: list[Item], batch_size: int, keep: bool) -> list[ImageResult]:
        """Results of images that were read ahead, in the same order."""
        results: dict[int, ImageResult] = {}
        by_size: dict[tuple[int, ...], list[tuple[int, PreparedImage]]] = {}
        spent: dict[int, float] = {}
        for index, item in enumerate(items):
            started = perf_counter()
            try:
                if item.image is None:
                    raise DataError(str(item.error))
                prepared = self._preprocess(item)
            except DataError as error:
                results[index] = ImageResult(item.source, frame=item.frame, error=str(error))
                continue
            spent[index] = perf_counter() - started
            by_size.setdefault(prepared.size, []).append((index, prepared))
        for same in by_size.values():
            for first in range(0, len(same), batch_size):
                places, batch = zip(*same[first : first + batch_size])
                started = perf_counter()
                all_found = self._predict_each(list(batch), [items[place] for place in places])
                share = (perf_counter() - started) / len(batch)
                for place, found in zip(places, all_found):
                    seconds = spent[place] + share
                    results[place] = self._result(items[place], found, keep, seconds)
        return [results[index] for index in range(len(items))]

    def _detect_tiles(
        self, item: Item, tiling: TileGrid, batch_size: int, keep: bool
    ) -> ImageResult:
        """Result of an image in tiles; one no larger than a tile is detected as any other."""
        tiles = [] if item.image is None else tiling.tiles(*item.image.shape[:2])
        if len(tiles) < 2:
            return self._detect([item], 1, keep)[0]
        assert item.image is not None
        started = perf_counter()
        parts: list[InstanceData] = []
        for first in range(0, len(tiles), batch_size):
            pieces = [
                item._replace(image=np.ascontiguousarray(item.image[top:bottom, left:right]))
                for left, top, right, bottom in tiles[first : first + batch_size]
            ]
            try:
                batch = [self._preprocess(each) for each in pieces]
            except DataError as error:
                return ImageResult(item.source, frame=item.frame, error=str(error))
            for found in self._predict_each(batch, pieces):
                if isinstance(found, str):
                    return ImageResult(item.source, frame=item.frame, error=found)
                parts.append(found)
        whole = join(parts, tiles, item.image.shape[:2])
        return self._result(item, whole, keep, perf_counter() - started)

    def _predict_each(
        self, batch: list[PreparedImage], items: list[Item]
    ) -> list[InstanceData | str]:
        """Detections per image, or a sentence that says why the network rejects the image."""
        try:
            return list(self._predict(batch))
        except GFLDetError:  # concerns the detector: the next image would fail too
            raise
        except Exception as error:  # a network may fail in any way; continue with the others
            if len(batch) > 1:
                alone = zip(batch, items)
                return [each for one, item in alone for each in self._predict_each([one], [item])]
            assert items[0].image is not None
            height, width = items[0].image.shape[:2]
            reason = str(error).strip().partition('\n')[0] or type(error).__name__
            return [
                f'The detector fails at {items[0].source} of {width} x {height} px '
                f'({type(error).__name__}: {reason.rstrip(".")}).'
            ]

    def _result(
        self, item: Item, found: InstanceData | str, keep: bool, seconds: float
    ) -> ImageResult:
        assert item.image is not None  # items without an image are never prepared
        if isinstance(found, str):
            return ImageResult(item.source, frame=item.frame, error=found)
        height, width = item.image.shape[:2]
        return ImageResult(
            item.source,
            (height, width),
            found,
            self.classes,
            self.level if 'edge_low' in found else None,
            item.frame,
            image=item.image if keep else None,
            milliseconds=1000 * seconds,
        )


def check_share(value: Any, name: str) -> None:
    """Refuse values that are not in [0, 1].

    Raises:
        ConfigError: If the value is not a number in [0, 1].
    """
    if not (isinstance(value, Real) and 0 <= float(value) <= 1):
        raise ConfigError(f'{name} must be a score from 0 to 1, not {value!r}.')
