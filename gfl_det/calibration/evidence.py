"""What a GFL detection tells of its IoU beside its score: its edges, and what lies around it.

Pure functions on arrays. An edge whose distribution is narrow against the box moves the IoU little
when it is wrong (Li et al., "Generalized Focal Loss V2", CVPR 2021, section 3: the shape of the
distributions goes with the quality of the box). A box over a better one of its class is often
that one's second box, which counts as wrong however well it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.special import entr, softmax

from gfl_det.calibration.maps import logit
from gfl_det.evaluation.detections import Detections
from gfl_det.evaluation.matching import overlaps

Group = Literal['score', 'distribution', 'overlap']
GROUPS: tuple[Group, ...] = get_args(Group)
# The columns of each group, in order.
COLUMNS: dict[Group, tuple[str, ...]] = {
    'score': ('logit of the score',),
    'distribution': (
        'log mean spread of the edges over the side',
        'log widest spread over the side',
        'mean entropy',
        'largest entropy',
        'mean peak',
        'mean of the two best bins',
        'log side in px',
        'log side in bins',
        'log elongation',
    ),
    'overlap': (
        'IoU with a better box of its class',
        'IoU with a better box of another class',
    ),
}
FLOOR = 1e-4  # of spreads over sides, whose logarithm is taken
MIN_SIDE_PX = 1.0


class EdgeDetections(NamedTuple):
    """N detections with the distributions that their edges were read from."""

    detections: Detections
    logits: np.ndarray  # (N, 4, num_bins)
    bin_widths: np.ndarray  # (N, 4) px

    def take(self, chosen: np.ndarray) -> EdgeDetections:
        """Those of a mask or of indices, in order."""
        found = self.detections.take(chosen)
        return EdgeDetections(found, self.logits[chosen], self.bin_widths[chosen])


def evidence(found: EdgeDetections, groups: Sequence[Group] = GROUPS) -> np.ndarray:
    """The columns of the groups.

    Args:
        found: N detections; those of an image are all that NMS kept of it, as far as 'overlap' is
            asked for.
        groups: of :data:`COLUMNS`, at least one.

    Returns:
        ``(N, F)`` float64, finite.
    """
    make = dict(score=_score, distribution=_distribution, overlap=_overlap)
    return np.concatenate([make[group](found) for group in groups], axis=1)


def _score(found: EdgeDetections) -> np.ndarray:
    return logit(found.detections.scores)[:, None]


def _distribution(found: EdgeDetections) -> np.ndarray:
    shares = softmax(found.logits.astype(float), axis=-1)
    bins = np.arange(shares.shape[-1])
    mean = shares @ bins
    spread = np.sqrt((shares * (bins - mean[..., None]) ** 2).sum(-1)) * found.bin_widths
    entropy = entr(shares).sum(-1)
    best = -np.sort(-shares, axis=-1)[..., :2]
    sides = np.maximum(found.detections.boxes[:, 2:], MIN_SIDE_PX)
    relative = spread / sides[:, [0, 1, 0, 1]] + FLOOR
    side = np.sqrt(sides.prod(1))
    columns = (
        np.log(relative.mean(1)),
        np.log(relative.max(1)),
        entropy.mean(1),
        entropy.max(1),
        best[..., 0].mean(1),
        best.sum(-1).mean(1),
        np.log(side),
        np.log(side / found.bin_widths.mean(1)),
        np.abs(np.log(sides[:, 0] / sides[:, 1])),
    )
    return np.stack(columns, axis=1)


def _overlap(found: EdgeDetections) -> np.ndarray:
    """Largest IoU with a box of the image that has a larger score, or the same and comes first."""
    detections = found.detections
    nearest = np.zeros((len(detections.scores), 2))
    order = np.lexsort((-detections.scores, detections.image))
    starts = np.flatnonzero(np.diff(detections.image[order], prepend=-1))
    for begin, end in zip(starts, [*starts[1:], len(order)]):
        mine = order[begin:end]
        worse, better = np.tril_indices(len(mine), -1)
        boxes, labels = detections.boxes[mine], detections.label[mine]
        iou = overlaps(boxes[worse], boxes[better], np.zeros(len(worse), bool))
        other = labels[worse] != labels[better]
        np.maximum.at(nearest, (mine[worse], other.astype(int)), iou)
    return nearest
