"""Metrics of detections that do not fit in memory, from parts with complete images.

Each part is matched separately, in this process or in others. 50 bytes are kept per detection:
class, score, image, a state per threshold and the few IoUs that calibration needs. Joined and
sorted, these equal the matches of all detections together, so the metrics are identical.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from gfl_det.errors import ConfigError
from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.evaluate import check_taus, metrics_of
from gfl_det.evaluation.functional import COCO_TAUS, HALF
from gfl_det.evaluation.matching import PIECE, Matches, ZeroOverlap, match

START = 'spawn'  # a forked process would inherit the locks of threads that it lacks
WAITING = 2  # parts for each worker, so that none waits for the next
Columns = dict[str, np.ndarray]


def evaluate_parts(
    parts: Iterable[Detections],
    gts: GroundTruth,
    taus: Sequence[float] = (0.0, 0.5),
    zero_overlap: ZeroOverlap = 'oracle',
    seed: int = 0,
    workers: int = 1,
) -> dict[str, float]:
    """Evaluate detections part by part.

    Args:
        parts: Parts, each with all detections of its images.
        gts: Ground truth of all images.
        taus: As in :func:`.evaluate.evaluate_detections`.
        zero_overlap: Likewise.
        seed: Likewise.
        workers: Processes that match; 1: this one. With more, a script needs the usual
            ``if __name__ == '__main__'``. The metrics are the same.

    Returns:
        The metrics of :func:`.evaluate.evaluate_detections`, without intervals.

    Raises:
        ConfigError: If a threshold or the number of workers is out of range.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.9]))
        >>> round(evaluate_parts([found], gts)['AP'], 4)
        1.0
    """
    check_taus(taus)
    if workers < 1:
        raise ConfigError(f'workers is a number of at least 1, not {workers!r}')
    other: ZeroOverlap = 'reject' if zero_overlap == 'oracle' else 'oracle'
    named: list[tuple[_Kind, str]] = []
    for tau in map(float, taus):
        named += [(_Kind(tau, zero_overlap), '')]
        named += [(_Kind(tau, other), f'_{other}')] if tau == 0 else []
    coco = [_Kind(float(tau), zero_overlap) for tau in COCO_TAUS]
    kinds = tuple(dict.fromkeys([kind for kind, _ in named] + coco))
    with_iou = {kind for kind, _ in named} | {coco[HALF]}
    merged = _Merged(gts.counts())
    for columns in _matched(_with_gts(parts, gts), _Task(kinds, with_iou), workers):
        merged.add(columns)
    merged.sort()
    matched = ((merged.at(kind), end) for kind, end in named)
    return metrics_of(matched, _Coco(merged, coco), seed)


class _Kind(NamedTuple):
    """How detections are matched."""

    tau: float
    zero_overlap: ZeroOverlap


class _Part(NamedTuple):
    """Detections and ground truth of some images, which are numbered from 0."""

    detections: Detections
    gts: GroundTruth
    images: np.ndarray  # (I,) int32, numbers of the images among all


def _with_gts(parts: Iterable[Detections], gts: GroundTruth) -> Iterator[_Part]:
    """Add the ground truth of its images to each part."""
    order = np.argsort(gts.image, kind='stable')
    ends = np.cumsum(np.bincount(gts.image, minlength=len(gts.image_ids)))
    for part in parts:
        images = np.unique(part.image)
        last = ends[images]
        number = last - np.where(images > 0, ends[images - 1], 0)
        begin = np.cumsum(number) - number  # of each image in the part
        rows = order[np.arange(number.sum()) + np.repeat(last - number - begin, number)]
        own = gts._replace(
            image_ids=[gts.image_ids[image] for image in images],
            image_keys=[gts.image_keys[image] for image in images],
            image=np.repeat(np.arange(len(images)), number),
            label=gts.label[rows],
            boxes=gts.boxes[rows],
            crowd=gts.crowd[rows],
        )
        alone = part._replace(image=np.searchsorted(images, part.image))
        yield _Part(alone, own, images.astype(np.int32))


class _Task:
    """Matches a part.

    Args:
        kinds: How to match.
        with_iou: Kinds whose IoUs are kept.
    """

    def __init__(self, kinds: Sequence[_Kind], with_iou: set[_Kind]) -> None:
        self._kinds, self._with_iou = kinds, with_iou

    def __call__(self, part: _Part) -> Columns:
        """Return the columns that are kept of the detections."""
        kept: Columns = {}
        for rule in dict.fromkeys(kind.zero_overlap for kind in self._kinds):
            mine = [kind for kind in self._kinds if kind.zero_overlap == rule]
            found = match(part.detections, part.gts, [kind.tau for kind in mine], rule)
            for kind, matches in zip(mine, found):
                kept[f'state {kind}'] = matches.state
                if kind in self._with_iou:
                    kept[f'iou {kind}'] = matches.iou
        scores = matches.scores.astype(np.float32)  # exact for those of a table
        kept['scores'] = scores if (scores == matches.scores).all() else matches.scores
        kept['label'] = matches.label.astype(np.int32)
        kept['image'] = part.images[part.detections.image[matches.row]]
        return kept


def _matched(parts: Iterable[_Part], task: _Task, workers: int) -> Iterator[Columns]:
    """Yield the matched parts in order."""
    if workers == 1:
        yield from map(task, parts)
        return
    context = multiprocessing.get_context(START)
    with ProcessPoolExecutor(workers, context) as pool:
        waiting: deque[Future[Columns]] = deque()
        for part in parts:
            waiting.append(pool.submit(task, part))
            if len(waiting) > WAITING * workers:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


class _Merged:
    """Matches of all parts.

    Args:
        counts: Gt boxes of each class, ``(K,)``.
    """

    def __init__(self, counts: np.ndarray) -> None:
        self._counts = counts
        self._new: list[Columns] = []
        self._waiting = 0  # detections in them
        self._parts: list[Columns] = []
        self._columns: Columns = {}

    def add(self, part: Columns) -> None:
        """Add the columns of a part."""
        self._new.append(part)
        self._waiting += len(part['label'])
        if self._waiting >= PIECE:
            self._join()

    def _join(self) -> None:
        # Many small arrays would leave holes in memory that the sorted columns cannot use.
        if self._new:
            names = list(self._new[0])
            self._parts.append({n: np.concatenate([each[n] for each in self._new]) for n in names})
            self._new.clear()
            self._waiting = 0

    def sort(self) -> None:
        """Join the parts and sort them by class, score and image, column by column."""
        self._join()
        if not self._parts:
            return
        columns = self._columns
        for name in ('label', 'scores', 'image'):
            columns[name] = np.concatenate([part.pop(name) for part in self._parts])
        order = np.lexsort((columns.pop('image'), -columns['scores'], columns['label']))
        for name in columns:
            columns[name] = columns[name][order]
        for name in list(self._parts[0]):
            columns[name] = np.concatenate([part.pop(name) for part in self._parts])[order]

    def at(self, kind: _Kind) -> Matches:
        """Return the matches of a kind, without rows and gt boxes."""
        columns = self._columns
        label, scores = columns.get('label', np.zeros(0, int)), columns.get('scores', np.zeros(0))
        nothing = np.broadcast_to(np.int64(-1), len(label))
        state = columns.get(f'state {kind}', np.zeros(0, np.int8))
        iou = columns.get(f'iou {kind}', np.broadcast_to(np.float64(np.nan), len(label)))
        return Matches(kind.tau, nothing, label, scores, state, iou, nothing, self._counts)


class _Coco(Sequence):
    """Matches at COCO's thresholds, created one at a time."""

    def __init__(self, merged: _Merged, kinds: Sequence[_Kind]) -> None:
        self._merged, self._kinds = merged, kinds

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, place: Any) -> Any:
        return self._merged.at(self._kinds[place])
