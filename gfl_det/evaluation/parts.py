"""Metrics of detections that do not fit in memory, from parts with complete images.

Each part is matched separately. About 60 bytes are kept per detection: class, score, image, a state
per threshold and the few IoUs that calibration needs. Merged and sorted, these equal the matches of
all detections together, so the metrics are identical.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.evaluate import check_taus, metrics_of
from gfl_det.evaluation.functional import COCO_TAUS, HALF
from gfl_det.evaluation.matching import Matches, ZeroOverlap, match


def evaluate_parts(
    parts: Iterable[Detections],
    gts: GroundTruth,
    taus: Sequence[float] = (0.0, 0.5),
    zero_overlap: ZeroOverlap = 'oracle',
    seed: int = 0,
) -> dict[str, float]:
    """Evaluate detections part by part.

    Args:
        parts: Parts, each with all detections of its images.
        gts: Ground truth of all images.
        taus: As in :func:`.evaluate.evaluate_detections`.
        zero_overlap: Likewise.
        seed: Likewise.

    Returns:
        The metrics of :func:`.evaluate.evaluate_detections`, without intervals.

    Raises:
        ConfigError: If a threshold is out of range.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.9]))
        >>> round(evaluate_parts([found], gts)['AP'], 4)
        1.0
    """
    check_taus(taus)
    merged = _Merged(gts, taus, zero_overlap)
    for part in parts:
        merged.add(part)
    merged.sort()
    named = ((merged.at(column), end) for column, end in enumerate(merged.ends))
    return metrics_of(named, _Coco(merged), seed)


class _Merged:
    """Matches of all parts: columns for the requested thresholds, then for COCO's."""

    def __init__(self, gts: GroundTruth, taus: Sequence[float], zero_overlap: ZeroOverlap) -> None:
        other: ZeroOverlap = 'reject' if zero_overlap == 'oracle' else 'oracle'
        self._gts, self._counts = gts, gts.counts()
        self._asked: list[tuple[float, ZeroOverlap]] = []
        self.ends: list[str] = []
        for tau in taus:
            kinds = (
                ((zero_overlap, ''), (other, f'_{other}')) if tau == 0 else ((zero_overlap, ''),)
            )
            self._asked += [(tau, kind) for kind, _ in kinds]
            self.ends += [end for _, end in kinds]
        self.first = len(self._asked)  # index of COCO's first threshold
        self._asked += [(float(tau), zero_overlap) for tau in COCO_TAUS]
        self._parts: list[dict[str, np.ndarray]] = []
        self._columns: dict[str, np.ndarray] = {}

    def add(self, part: Detections) -> None:
        """Match a part."""
        images = np.unique(part.image)
        own = self._gts.of_images(images)
        alone = part._replace(image=np.searchsorted(images, part.image))
        found: dict[int, Matches] = {}
        for kind in dict.fromkeys(kind for _, kind in self._asked):
            places = [i for i, (_, each) in enumerate(self._asked) if each == kind]
            taus = [self._asked[place][0] for place in places]
            found.update(zip(places, match(alone, own, taus, kind)))
        first = found[0]
        kept: dict[str, np.ndarray] = {
            'label': first.label.astype(np.int32),
            'scores': first.scores,
            'image': images[alone.image[first.row]].astype(np.int32),
        }
        for place, matches in found.items():
            kept[f'state {place}'] = matches.state
            if place <= self.first + HALF and place not in range(self.first, self.first + HALF):
                kept[f'iou {place}'] = matches.iou
        self._parts.append(kept)

    def sort(self) -> None:
        """Join the parts and sort them by class, score and image."""
        for name in list(self._parts[0]) if self._parts else ():
            self._columns[name] = np.concatenate([part.pop(name) for part in self._parts])
        self._parts.clear()
        columns = self._columns
        if columns:
            order = np.lexsort((columns.pop('image'), -columns['scores'], columns['label']))
            for name in columns:
                columns[name] = columns[name][order]
            columns['label'] = columns['label'].astype(np.int64)

    def at(self, place: int) -> Matches:
        """Return the matches at a threshold, without rows and gt boxes."""
        columns = self._columns
        label, scores = columns.get('label', np.zeros(0, int)), columns.get('scores', np.zeros(0))
        nothing = np.broadcast_to(np.int64(-1), len(label))
        state = columns.get(f'state {place}', np.zeros(0, np.int8))
        iou = columns.get(f'iou {place}', np.broadcast_to(np.float64(np.nan), len(label)))
        tau = float(self._asked[place][0])
        return Matches(tau, nothing, label, scores, state, iou, nothing, self._counts)


class _Coco(Sequence):
    """Matches at COCO's thresholds, created one at a time."""

    def __init__(self, merged: _Merged) -> None:
        self._merged = merged

    def __len__(self) -> int:
        return len(COCO_TAUS)

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._merged.at(self._merged.first + place)
