"""Error analysis of detections: six kinds, the AP that each costs, and images to show.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
section 2. IoU thresholds: `tau` for a match, and `background`, below which a box counts as
background. A false detection has the first kind that applies:

- localisation: IoU in [background, tau) with a gt box of its class;
- class: IoU of tau or more with a gt box of another class;
- duplicate: IoU of tau or more with a gt box of its class that a better detection has taken;
- background: IoU below background with all gt boxes;
- both: the rest, IoU in [background, tau) with a gt box of another class.

A gt box is missed if it has neither a match nor a class or localisation error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from gfl_det.evaluation.detections import Detections, GroundTruth
from gfl_det.evaluation.functional import average_precision
from gfl_det.evaluation.matching import FALSE, IGNORED, MAX_DETS, TRUE, Matches, match, overlaps

CHUNK = 50_000  # detections per chunk of pairs


class Pairs(NamedTuple):
    """P pairs of overlapping boxes."""

    detection: np.ndarray  # (P,) int64
    gt: np.ndarray  # (P,) int64
    iou: np.ndarray  # (P,) in (0, 1]

    def take(self, chosen: np.ndarray) -> Pairs:
        """Select by a mask or indices."""
        return Pairs(*(values[chosen] for values in self))


def pairs_in_images(detections: Detections, gts: GroundTruth) -> Iterator[Pairs]:
    """All overlapping pairs of a detection and a gt box in one image, except crowds.

    Yields:
        Pairs of whole images, in chunks, so that memory does not grow with the dataset.
    """
    candidates = np.flatnonzero(~gts.crowd)
    candidates = candidates[np.argsort(gts.image[candidates], kind='stable')]
    images = gts.image[candidates]
    order = np.argsort(detections.image, kind='stable')
    starts = np.flatnonzero(np.diff(detections.image[order], prepend=-1))
    begin = 0
    for end in [*starts[1:], len(order)]:
        if end - begin < CHUNK and end < len(order):
            continue
        rows, begin = order[begin:end], end
        first = np.searchsorted(images, detections.image[rows])
        count = np.searchsorted(images, detections.image[rows], side='right') - first
        detection = np.repeat(rows, count)
        start = np.cumsum(count) - count
        gt = candidates[np.arange(len(detection)) - np.repeat(start - first, count)]
        none = np.zeros(len(gt), bool)
        iou = overlaps(detections.boxes[detection], gts.boxes[gt], none)
        touching = iou > 0
        yield Pairs(detection[touching], gt[touching], iou[touching])


KINDS = ('localisation', 'class', 'both', 'duplicate', 'background', 'missed')
LOCALISATION, CLASS, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
NO_ERROR = -1
TAU, BACKGROUND_TAU = 0.5, 0.1


class Errors(NamedTuple):
    """Errors of a set of detections, rows in the order of ``found``."""

    found: Matches
    kind: np.ndarray  # (N,) int64, index into KINDS or NO_ERROR
    gt: np.ndarray  # (N,) int64, gt box of a localisation, class or both error; else -1
    missed: np.ndarray  # (M,) bool, gt boxes


class Nearest(NamedTuple):
    """Gt boxes with the largest IoU per detection, except crowds; IoU 0 and index -1 if none."""

    own_iou: np.ndarray  # (N,) for gt boxes of the detection's class
    own: np.ndarray  # (N,) int64
    other_iou: np.ndarray  # (N,) for gt boxes of other classes
    other: np.ndarray  # (N,) int64


def find_errors(
    detections: Detections,
    gts: GroundTruth,
    tau: float = TAU,
    background: float = BACKGROUND_TAU,
    max_dets: int = MAX_DETS,
) -> Errors:
    """Match detections and classify the false ones.

    Args:
        detections: Detections, cut at a score to assess an operating point.
        gts: Ground truth of the same images.
        tau: IoU threshold of a match.
        background: IoU below which a detection counts as background.
        max_dets: Maximum detections per image and class.
    """
    (found,) = match(detections, gts, [tau], max_dets=max_dets)
    near = nearest(detections.take(found.row), gts)
    on_own = near.own_iou >= background
    kind = np.select(
        [
            found.state != FALSE,
            on_own & (near.own_iou < tau),
            near.other_iou >= tau,
            near.own_iou >= tau,
            ~on_own & (near.other_iou < background),
        ],
        [NO_ERROR, LOCALISATION, CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )
    gt = np.full(len(kind), -1)
    gt[kind == LOCALISATION] = near.own[kind == LOCALISATION]
    on_other = (kind == CLASS) | (kind == BOTH)
    gt[on_other] = near.other[on_other]
    missed = ~gts.crowd
    missed[found.gt[found.state == TRUE]] = False
    missed[gt[(kind == LOCALISATION) | (kind == CLASS)]] = False
    return Errors(found, kind, gt, missed)


def nearest(detections: Detections, gts: GroundTruth) -> Nearest:
    """Gt boxes with the largest IoU per detection; the last one in a tie."""
    number = len(detections.scores)
    near = Nearest(np.zeros(number), np.full(number, -1), np.zeros(number), np.full(number, -1))
    for pairs in pairs_in_images(detections, gts):
        same = detections.label[pairs.detection] == gts.label[pairs.gt]
        _keep_best(near.own_iou, near.own, pairs.take(same))
        _keep_best(near.other_iou, near.other, pairs.take(~same))
    return near


def _keep_best(best: np.ndarray, which: np.ndarray, pairs: Pairs) -> None:
    """Write the largest IoU of each detection and its gt box, in place."""
    order = np.lexsort((pairs.gt, pairs.iou, pairs.detection))  # best pair per detection last
    pairs = pairs.take(order)
    best[pairs.detection] = pairs.iou
    which[pairs.detection] = pairs.gt


def oracle_gains(errors: Errors, gts: GroundTruth) -> dict[str, float]:
    """Gain in AP at tau if all errors of one kind were fixed.

    A localisation or class error becomes a true positive if its gt box is unmatched and has no
    better error of that kind; otherwise it is removed, like both, duplicate and background errors.
    Missed gt boxes are removed.

    Returns:
        AP gain as a fraction for each of `KINDS`, for all false positives and for all false
        negatives; ``AP`` is the value without fixes. NaN without gt boxes.
    """
    found, kind = errors.found, errors.kind
    present = found.gt_counts > 0
    base = _mean_precision(found, present)
    gains = {'AP': base}
    for index, name in enumerate(KINDS[:MISSED]):
        gone = found.state.copy()
        gone[kind == index] = IGNORED
        label = found.label.copy()
        if index in (LOCALISATION, CLASS):
            mended = _mendable(errors, index, len(gts.label))
            gone[mended] = TRUE
            label[mended] = gts.label[errors.gt[mended]]
        gains[name] = _mean_precision(found._replace(state=gone, label=label), present) - base
    missed = np.bincount(gts.label[errors.missed], minlength=len(present))
    gains['missed'] = (
        _mean_precision(found._replace(gt_counts=found.gt_counts - missed), present) - base
    )
    silent = found._replace(state=np.where(found.state == FALSE, IGNORED, found.state))
    gains['false positives'] = _mean_precision(silent, present) - base
    right = np.bincount(found.label[found.state == TRUE], minlength=len(present))
    gains['false negatives'] = _mean_precision(found._replace(gt_counts=right), present) - base
    return gains


def _mendable(errors: Errors, kind: int, num_gts: int) -> np.ndarray:
    """Rows of the best error of a kind per unmatched gt box."""
    taken = np.zeros(num_gts, bool)
    taken[errors.found.gt[errors.found.state == TRUE]] = True
    rows = np.flatnonzero(errors.kind == kind)
    rows = rows[~taken[errors.gt[rows]]]
    rows = rows[np.argsort(-errors.found.scores[rows], kind='stable')]
    _, first = np.unique(errors.gt[rows], return_index=True)
    return rows[first]


def _mean_precision(found: Matches, present: np.ndarray) -> float:
    """Mean AP of classes with gt boxes; a class whose gt boxes were all removed has 0."""
    order = np.lexsort((-found.scores, found.label))
    found = found._replace(
        label=found.label[order], scores=found.scores[order], state=found.state[order]
    )
    per_class = average_precision([found]).per_class[present]
    return float(np.nan_to_num(per_class).mean()) if len(per_class) else float('nan')


class Confusions(NamedTuple):
    """The class at which each detection and each gt box is counted, K for "nothing"."""

    found: np.ndarray  # (N,) int64, gt class of each of ``errors.found``; -1 in a crowd
    gt: np.ndarray  # (M,) int64, predicted class of each gt box; -1 for a crowd

    def matrix(self, errors: Errors, gts: GroundTruth) -> np.ndarray:
        """Count ``(K + 1, K + 1)`` int64: rows are gt classes and "nothing", columns predicted."""
        classes = len(gts.category_ids)
        matrix = np.zeros((classes + 1, classes + 1), np.int64)
        counted = self.found >= 0
        np.add.at(matrix, (self.found[counted], errors.found.label[counted]), 1)
        lost = self.gt == classes
        np.add.at(matrix, (gts.label[lost], self.gt[lost]), 1)
        return matrix


def find_confusions(detections: Detections, gts: GroundTruth, errors: Errors) -> Confusions:
    """Pair detections with gt boxes of any class.

    Detections that match a gt box of their class, as in COCO, come first, so that the diagonal
    equals the true positives elsewhere. The others, by descending score, take the unmatched gt box
    of another class with the largest IoU of at least tau. Remaining detections and gt boxes count
    as "nothing". Crowds, and detections in them, are ignored.

    Args:
        detections: The detections of ``errors``, cut at the chosen score.
        gts: Ground truth of the same images.
        errors: Their errors.
    """
    classes = len(gts.category_ids)
    found = errors.found
    partner = np.where(found.state == TRUE, found.gt, -1)
    free = ~gts.crowd
    free[partner[partner >= 0]] = False
    wrong = np.flatnonzero(found.state == FALSE)
    others, taken = detections.take(found.row[wrong]), np.full(len(wrong), -1)
    for pairs in pairs_in_images(others, gts):
        near = pairs.take((pairs.iou >= found.tau) & free[pairs.gt])
        _pair_off(near, others.scores, free, taken)
    partner[wrong] = taken
    paired = partner >= 0
    of_found = np.where(found.state == FALSE, classes, -1)
    of_found[paired] = gts.label[partner[paired]]
    of_gt = np.where(gts.crowd, -1, classes)
    of_gt[partner[paired]] = found.label[paired]
    return Confusions(of_found, of_gt)


def confusion_matrix(detections: Detections, gts: GroundTruth, errors: Errors) -> np.ndarray:
    """Count the confusion matrix of gt boxes and detections.

    Args:
        detections: The detections of ``errors``, cut at the chosen score.
        gts: Ground truth of the same images.
        errors: Their errors.

    Returns:
        ``(K + 1, K + 1)`` int64: rows are gt classes and last "nothing", columns predicted ones.
    """
    return find_confusions(detections, gts, errors).matrix(errors, gts)


def _pair_off(pairs: Pairs, scores: np.ndarray, free: np.ndarray, partner: np.ndarray) -> None:
    """Assign unmatched gt boxes to detections by score, then IoU, in place."""
    pairs = pairs.take(np.lexsort((pairs.detection, -pairs.iou, -scores[pairs.detection])))
    for detection, gt in zip(pairs.detection.tolist(), pairs.gt.tolist()):
        if free[gt] and partner[detection] < 0:
            free[gt] = False
            partner[detection] = gt


def best_cover(errors: Errors) -> np.ndarray:
    """Score ``(M,)`` up to which each gt box is not missed: -1 without any.

    A gt box is missed where a cut leaves no match and no localisation or class error on it.
    """
    found = errors.found
    cover = np.full(len(errors.missed), -1.0)
    for which, on in (
        (found.gt, found.state == TRUE),
        (errors.gt, (errors.kind == LOCALISATION) | (errors.kind == CLASS)),
    ):
        np.maximum.at(cover, which[on], found.scores[on])
    return cover


def count_by_score(errors: Errors, gts: GroundTruth, least: np.ndarray) -> np.ndarray:
    """Count detections and gt boxes by score, so that sums from a bin upwards are those of a cut.

    A cut removes whole detections and changes the kind of no other: only gt boxes become missed.

    Args:
        errors: Errors of detections that were not cut.
        gts: Ground truth of the same images, K classes.
        least: ``(B,)`` lowest score of each bin, ascending from 0.

    Returns:
        ``(K, 1 + len(KINDS), B)`` int64: true positives, errors of each kind but missed, and last
        gt boxes that are not missed.
    """
    found = errors.found
    counts = np.zeros((len(gts.category_ids), 1 + len(KINDS), len(least)), np.int64)

    def add(label: np.ndarray, row: np.ndarray, scores: np.ndarray) -> None:
        np.add.at(counts, (label, row, np.searchsorted(least, scores, side='right') - 1), 1)

    right, wrong = found.state == TRUE, errors.kind != NO_ERROR
    add(found.label[right], np.zeros(right.sum(), np.int64), found.scores[right])
    add(found.label[wrong], 1 + errors.kind[wrong], found.scores[wrong])
    cover = best_cover(errors)
    there = (cover >= 0) & ~gts.crowd
    add(gts.label[there], np.full(there.sum(), 1 + MISSED), cover[there])
    return counts


class ImageErrors(NamedTuple):
    """Errors per image, I images, for detections cut at a score."""

    quality: np.ndarray  # (I,) 1 - LRP in [0, 1]; NaN without gt boxes and detections
    counts: np.ndarray  # (E, 4) int64: image, kind, class, number, sorted; no zeros
    gts: np.ndarray  # (I,) number of gt boxes without crowds
    right: np.ndarray  # (I,) true positives


def judge_images(errors: Errors, image_of: np.ndarray, gts: GroundTruth) -> ImageErrors:
    """Assess each image.

    The quality is 1 - LRP (Oksuz et al., TPAMI 2021) over all classes: 1 if all gt boxes are found
    exactly without false positives, 0 without true positives.

    Args:
        errors: Errors of detections that were cut at a score.
        image_of: ``(N,)`` images of those detections, in the same order.
        gts: Ground truth of I images.
    """
    found, images = errors.found, len(gts.image_ids)
    image = image_of[found.row]
    right, wrong = found.state == TRUE, found.state == FALSE
    distance = (1 - found.iou[right]) / (1 - found.tau)
    located = np.bincount(image[right], distance, images)
    hits, false = np.bincount(image[right], None, images), np.bincount(image[wrong], None, images)
    number = np.bincount(gts.image[~gts.crowd], None, images)
    total = number + false
    with np.errstate(invalid='ignore'):  # empty images
        quality = 1 - (located + false + number - hits) / total
    return ImageErrors(quality, _count(errors, image, gts), number, hits)


def choose_images(judged: ImageErrors, limit: int) -> list[int]:
    """Choose images to show: the worst, the best, and some for each kind of error and class.

    A third are the worst and a fifth the best. The others each add a pair of kind and class not yet
    shown, in the image where it is most frequent: first the most frequent pair of each kind, then
    other pairs. Further places go to the next worst.

    Args:
        judged: Assessment of all images.
        limit: Maximum number of images.

    Returns:
        The most important first: a list of fewer is the beginning of this one.
    """
    known = np.flatnonzero(~np.isnan(judged.quality))
    worst = known[np.argsort(judged.quality[known], kind='stable')].tolist()
    chosen: dict[int, None] = {}
    from_worst, from_best = iter(worst), reversed(worst)
    of_kinds = chain(_with_new_errors(judged.counts, chosen), from_worst)
    taken_worst = taken_best = 0
    while len(chosen) < min(limit, len(worst)):
        number = len(chosen) + 1
        if taken_worst < -(-number // 3):
            taken_worst, source = taken_worst + 1, from_worst
        elif taken_best < number // 5:
            taken_best, source = taken_best + 1, from_best
        else:
            source = of_kinds
        chosen[next(image for image in source if image not in chosen)] = None
    return list(chosen)


def _with_new_errors(counts: np.ndarray, chosen: Collection[int]) -> Iterator[int]:
    """Images that add a pair of kind and class not yet shown."""
    pairs, which = np.unique(counts[:, 1:3], axis=0, return_inverse=True)
    which = which.reshape(-1)  # only NumPy 2.0 returns another shape
    order = np.argsort(-np.bincount(which, counts[:, 3], len(pairs)), kind='stable')
    _, leaders = np.unique(pairs[order, 0], return_index=True)  # most frequent of each kind
    leaders.sort()
    for pair in [*order[leaders], *np.delete(order, leaders)]:
        rows = counts[which == pair]
        if not any(image in chosen for image in rows[:, 0].tolist()):
            yield int(rows[rows[:, 3].argmax(), 0])


def _count(errors: Errors, image: np.ndarray, gts: GroundTruth) -> np.ndarray:
    """Errors by image, kind and class: the detection's class, or a missed gt box's."""
    classes = len(gts.category_ids)
    wrong = errors.kind != NO_ERROR
    missed = errors.missed
    where = np.concatenate([image[wrong], gts.image[missed]])
    kind = np.concatenate([errors.kind[wrong], np.full(missed.sum(), MISSED)])
    label = np.concatenate([errors.found.label[wrong], gts.label[missed]])
    keys, number = np.unique((where * len(KINDS) + kind) * classes + label, return_counts=True)
    rest, label = np.divmod(keys, classes)
    where, kind = np.divmod(rest, len(KINDS))
    return np.column_stack([where, kind, label, number])
