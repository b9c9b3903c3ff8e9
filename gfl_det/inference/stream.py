"""From images of any kind to results, whatever runs the network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from numbers import Integral
from typing import Any, NamedTuple

from mmengine.structures import InstanceData

from gfl_det.errors import ConfigError, DataError
from gfl_det.inference.results import ImageResult, Results
from gfl_det.inference.sources import ImageSource, Inputs, Item, Reading, find_sources, read_items
from gfl_det.utils.console import Progress

# So many batches are read ahead, so that images of one size come together whatever their order.
WINDOW_BATCHES = 4


class PreparedImage(NamedTuple):
    """An image that is ready for the network."""

    size: tuple[int, ...]  # those of one size may form a batch
    data: Any


class ImageDetector(ABC):
    """What all detectors on images share: how inputs are found, put together and told of.

    Subclasses set ``classes``, names in the order of the labels; ``level``, of the intervals; and
    ``_decoding``, see :class:`.sources.Reading`.
    """

    classes: tuple[str, ...]
    level: float | None
    _decoding: tuple[tuple[str, Any], ...]

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
            ConfigError: ``batch_size`` is less than 1.
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

    def find(self, inputs: Inputs, **reading: Any) -> list[ImageSource]:
        """List the images and videos that inputs stand for; arguments as of a call."""
        return find_sources(inputs, Reading(**reading, decoding=self._decoding))

    def stream(
        self, sources: Iterable[ImageSource], *, batch_size: int = 1, keep_images: bool = False
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

    @abstractmethod
    def _preprocess(self, item: Item) -> PreparedImage:
        """Make an image that was read ready.

        Raises:
            DataError: it cannot be.
        """

    @abstractmethod
    def _predict(self, batch: list[PreparedImage]) -> list[InstanceData]:
        """Detections of images of one size, in their order."""

    def _detect(self, items: list[Item], batch_size: int, keep: bool) -> list[ImageResult]:
        """Results of images that are read ahead, in their order."""
        results: dict[int, ImageResult] = {}
        by_size: dict[tuple[int, ...], list[tuple[int, PreparedImage]]] = {}
        for index, item in enumerate(items):
            try:
                if item.image is None:
                    raise DataError(str(item.error))
                prepared = self._preprocess(item)
            except DataError as error:
                results[index] = ImageResult(item.source, frame=item.frame, error=str(error))
                continue
            by_size.setdefault(prepared.size, []).append((index, prepared))
        for same in by_size.values():
            for first in range(0, len(same), batch_size):
                places, batch = zip(*same[first : first + batch_size])
                for place, found in zip(places, self._predict(list(batch))):
                    results[place] = self._result(items[place], found, keep)
        return [results[index] for index in range(len(items))]

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
