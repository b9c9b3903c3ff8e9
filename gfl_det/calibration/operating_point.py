"""Cuts per class that keep a promise: precision, recall or false alarms, with a stated confidence.

Learn then test (Angelopoulos et al. 2021, arXiv 2110.01052): each cut of a fixed grid is a null
hypothesis, "the promise is broken here"; a cut may be used if its hypothesis is rejected while the
chance of any wrong rejection stays below 1 - confidence. An image is one observation, whose
detections may depend on each other in any way:

==================  ====================  =========================  ==============
promise             holds if              observation L of an image  largest L
==================  ====================  =========================  ==============
``precision`` p     E[TP] >= p E[kept]    p * FP - (1 - p) * TP      p * most FP
``recall`` r        E[TP] >= r E[gts]     r * FN - (1 - r) * TP      r * most FN
``false_alarms`` a  E[FP] <= a            FP - a                     most FP - a
==================  ====================  =========================  ==============

A broken promise means E[L] > 0. The p value comes from bets against that (Waudby-Smith and Ramdas
2024, arXiv 2010.09686): the wealth, the product of 1 - b L over images, has a mean of at most 1 for
every stake b that cannot ruin, and so has the average over several stakes; by Markov's inequality
its inverse is a p value. Recall and false alarms change in one direction with the cut, so cuts are
tested in that order until the first failure. Precision may rise and fall: several starting cuts
share the error, and what a rejection has used is passed on to the next cut (the fallback procedure,
Wiens 2003).

What is assumed: images are independent draws of those that follow, and no image has two mistakes
more (FP, for recall FN) of a class above the cut than the worst of those given. ``most`` states the
largest number of mistakes instead, which makes the confidence exact, and needs more images; a cut
at which an image has more than stated cannot pass. As the worst of a few images says little, a
share is promised from n images with the class only if target ** n is at most 1 - confidence: with
fewer, all could look right by chance though a share 1 - target of all images is wrong throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import scipy

from gfl_det.calibration.calibrators import FitSource, check_labels, source_of
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import Detections, GroundTruth, check_detections
from gfl_det.evaluation.matching import IGNORED, NEVER, TRUE, Matches, match

Goal = Literal['precision', 'recall', 'false_alarms']
GOALS: tuple[Goal, ...] = get_args(Goal)
CUTS = np.arange(100) / 100  # scores of at least the cut are kept
STARTS = np.arange(40, 91, 10)  # indices of cuts that share the error where precision is tested
STAKES = np.arange(1, 9) / 8  # shares of the largest stake that cannot ruin
NO_BOX = 2.0  # a cut above every score
LARGEST_FACTOR = 1024  # of the images, up to which it is said how many more would do


@dataclass(frozen=True)
class Promise:
    """What the kept detections of each class shall satisfy.

    Args:
        goal: ``precision`` and ``recall`` are shares of the boxes of all images together,
            ``false_alarms`` the mean number of false positives per image.
        target: Least precision or recall, in (0, 1); most false alarms, above 0.
        confidence: Least chance, over draws of the held-out images, that the promise holds; in
            (0, 1).
        iou: A detection is right if it matches a gt box of its class at this IoU.
        jointly: The chance is that of all classes at once, and not of each.
        most: Largest number of mistakes in an image, such as the detector's ``max_per_img``; None:
            one more than in any of the images given (see the module).

    Raises:
        ConfigError: If a value is out of range.
    """

    goal: Goal
    target: float
    confidence: float = 0.9
    iou: float = 0.5
    jointly: bool = False
    most: int | None = None

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise ConfigError(f'a promise is about one of {GOALS}, not {self.goal!r}')
        share = self.goal != 'false_alarms'
        if not 0 < self.target < (1 if share else math.inf):
            limits = 'lie between 0 and 1' if share else 'be above 0'
            raise ConfigError(f'the {self.goal} to promise must {limits}, not {self.target!r}')
        for name in ('confidence', 'iou'):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ConfigError(f'the {name} of a promise lies between 0 and 1, not {value!r}')
        if self.most is not None and self.most < 1:
            raise ConfigError(f'most is a count of at least 1, not {self.most!r}')


class ClassCut(NamedTuple):
    """The cut of a class, and what the held-out images show at it.

    Without a cut the counts are those of the cut that comes nearest to the promise.
    """

    name: str
    cut: float | None  # least score; None: no cut can promise it
    kept: int  # detections above the cut, those in crowds apart
    right: int  # of these, matched with a gt box
    gts: int
    more: int | None  # images to add so that a cut can promise it; None: none found


@dataclass(frozen=True)
class OperatingPoint:
    """Chosen cuts; :mod:`.files` saves and loads them."""

    promise: Promise
    score_type: str  # name of a head
    calibrator: str | None  # digest of the calibrator's file whose scores are cut; None: raw scores
    classes: tuple[ClassCut, ...]  # in label order
    source: FitSource

    @property
    def class_names(self) -> list[str]:
        """Class names in label order."""
        return [each.name for each in self.classes]

    def thresholds(self) -> list[float]:
        """Least score per class; without a cut all boxes stay for recall, and none otherwise."""
        other = 0.0 if self.promise.goal == 'recall' else NO_BOX
        return [other if each.cut is None else each.cut for each in self.classes]


class Counts(NamedTuple):
    """Counts of a class per image, for the I images that have any, and T cuts."""

    kept: np.ndarray  # (I, T) detections above the cut, those in crowds apart
    right: np.ndarray  # (I, T) of these, matched
    gts: np.ndarray  # (I,)
    images: int  # of the data set, those without any of the class included


def choose_cuts(
    detections: Detections,
    truths: GroundTruth,
    promise: Promise,
    score_type: str = 'GFLHead',
    calibrator: str | None = None,
) -> OperatingPoint:
    """Choose the cut of each class on held-out images.

    The lowest cut that can promise precision or few false alarms is chosen, which finds most, and
    the highest one that can promise recall, which has the fewest false alarms.

    Args:
        detections: After NMS, with the scores to cut; of images that neither detector nor
            calibrator was fitted on.
        truths: Ground truth of the same images.
        promise: What to promise.
        score_type: Name of the head.
        calibrator: Digest of the file of the calibrator that gave the scores; None: raw scores.

    Raises:
        DataError: If there are no images, or a score is outside [0, 1].

    Example:
        >>> image, label = np.arange(400) // 2, np.zeros(400, int)
        >>> boxes = np.tile([[0.0, 0, 4, 4], [9.0, 9, 4, 4]], (200, 1))
        >>> keys = list(map(str, range(200)))
        >>> no_crowd = np.zeros(400, bool)
        >>> gts = GroundTruth(keys, keys, [1], ['cat'], image, label, boxes, no_crowd)
        >>> scores = np.tile([0.8, 0.35], 200)
        >>> found = Detections(image, label, boxes + [[0], [99]] * 200, scores)
        >>> chosen = choose_cuts(found, gts, Promise('precision', 0.9))
        >>> chosen.classes[0].cut, chosen.classes[0].kept, chosen.classes[0].right
        (0.36, 200, 200)
    """
    check_detections(detections)
    check_labels(detections.label, truths.class_names)
    if not truths.image_ids:
        raise DataError('There are no images to choose cuts on: give held-out ones.')
    (matches,) = match(detections, truths, [promise.iou], max_dets=int(NEVER))
    error = (1 - promise.confidence) / (len(truths.class_names) if promise.jointly else 1)
    classes = []
    for label, name in enumerate(truths.class_names):
        counts = count_class(matches, detections, truths, label)
        classes.append(_cut_of(name, counts, promise, error))
    source = source_of(truths, detections)
    return OperatingPoint(promise, score_type, calibrator, tuple(classes), source)


def count_class(matches: Matches, detections: Detections, gts: GroundTruth, label: int) -> Counts:
    """Count a class per image and cut.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.6]))
        >>> counts = count_class(match(found, gts, [0.5])[0], found, gts, 0)
        >>> counts.kept[0, [60, 61]], counts.right[0, [60, 61]], counts.gts
        (array([1, 0]), array([1, 0]), array([1]))
    """
    mine = matches.of_class(label)
    judged = mine.state != IGNORED
    image, state = detections.image[mine.row[judged]], mine.state[judged]
    place = np.searchsorted(CUTS, mine.scores[judged], side='right') - 1  # highest cut passed
    gt_image = gts.image[(gts.label == label) & ~gts.crowd]
    rows = np.unique(np.concatenate([image, gt_image]))
    kept, right = np.zeros((2, len(rows), len(CUTS)), np.int64)
    np.add.at(kept, (np.searchsorted(rows, image), place), 1)
    np.add.at(right, (np.searchsorted(rows, image), place), state == TRUE)
    kept, right = (np.cumsum(each[:, ::-1], axis=1)[:, ::-1] for each in (kept, right))
    per_image = np.bincount(np.searchsorted(rows, gt_image), minlength=len(rows))
    return Counts(kept, right, per_image, len(gts.image_ids))


def log_wealths(counts: Counts, promise: Promise) -> np.ndarray:
    """Logarithm ``(T, S)`` of what each stake has won at each cut against a broken promise.

    Example:
        >>> kept = right = np.ones((40, 1), int)
        >>> counts = Counts(kept, right, np.ones(40, int), 40)
        >>> wealth = np.exp(log_wealths(counts, Promise('precision', 0.9)))
        >>> bool(np.isclose(wealth[0, -1], 0.9**-40))
        True
    """
    target, elsewhere = promise.target, 0.0
    wrong = (counts.gts[:, None] if promise.goal == 'recall' else counts.kept) - counts.right
    most = wrong.max(axis=0, initial=0) + 1 if promise.most is None else promise.most
    if promise.goal == 'false_alarms':
        losses, elsewhere = wrong - target, -target
        largest = np.maximum(most - target, target)  # fewer cannot be too many
    else:
        losses, largest = target * wrong - (1 - target) * counts.right, target * most
    stakes = STAKES / np.broadcast_to(largest, losses.shape[1])[:, None]  # (T, S)
    wealth = np.zeros(stakes.shape)
    with np.errstate(divide='ignore'):
        for index in range(len(STAKES)):
            wealth[:, index] = np.log1p(np.maximum(-stakes[:, index] * losses, -1)).sum(0)
        others = counts.images - len(losses)
        wealth += others * np.log1p(-stakes * elsewhere)
    wealth[wrong.max(axis=0, initial=0) > most] = -np.inf
    return wealth


def passing(wealths: np.ndarray, goal: Goal, error: float) -> np.ndarray:
    """Mask ``(T,)`` of the cuts that can promise, with the family-wise error below ``error``.

    Args:
        wealths: From :func:`log_wealths`.
        goal: The promise's.
        error: Chance that any cut passes wrongly.

    Example:
        >>> wealths = np.full((100, 8), -np.inf)
        >>> wealths[85:] = 9.0  # a high cut is enough
        >>> int(passing(wealths, 'precision', 0.1).sum())
        6
    """
    evidence = scipy.special.logsumexp(wealths, axis=1) - math.log(wealths.shape[1])
    cuts = len(evidence)
    order = range(cuts) if goal == 'recall' else range(cuts - 1, -1, -1)
    share = np.zeros(cuts)
    share[STARTS if goal == 'precision' else [order[0]]] = 1
    share *= error / share.sum()
    passed, level = np.zeros(cuts, bool), 0.0
    for cut in order:
        level += share[cut]
        passed[cut] = level > 0 and evidence[cut] >= -math.log(level)
        level *= passed[cut]
    return passed


def _cut_of(name: str, counts: Counts, promise: Promise, error: float) -> ClassCut:
    wealths = log_wealths(counts, promise)
    passed = np.flatnonzero(_allowed(wealths, counts, promise, error))
    gts = int(counts.gts.sum())
    cut: float | None = None
    more: int | None = 0
    if len(passed):
        place = passed[-1] if promise.goal == 'recall' else passed[0]
        cut = float(CUTS[place])
    else:
        place = wealths.max(1).argmax()
        more = _more_images(wealths, counts, promise, error)
    kept, right = (int(each[:, place].sum()) for each in (counts.kept, counts.right))
    return ClassCut(name, cut, kept, right, gts, more)


def _allowed(
    wealths: np.ndarray, counts: Counts, promise: Promise, error: float, factor: float = 1.0
) -> np.ndarray:
    """Mask ``(T,)`` of the cuts that can promise, from so many times the images given."""
    passed = passing(factor * wealths, promise.goal, error)
    if promise.goal == 'false_alarms':
        return passed
    of_class = counts.gts[:, None] if promise.goal == 'recall' else counts.kept
    observed = factor * (of_class > 0).sum(0)
    return passed & (observed * math.log(promise.target) <= math.log(error))


def _more_images(wealths: np.ndarray, counts: Counts, promise: Promise, error: float) -> int | None:
    """Images to add so that a cut passes, if all are like those given; None: none would do."""
    images = counts.images

    def is_enough(factor: float) -> bool:
        return bool(_allowed(wealths, counts, promise, error, factor).any())

    if not is_enough(LARGEST_FACTOR):
        return None
    low, high = 1.0, float(LARGEST_FACTOR)
    while high - low > 0.5 / images:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return math.ceil((high - 1) * images)


def cut_mask(labels: np.ndarray, scores: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Mask ``(N,)`` of the detections that reach their class's least score.

    Example:
        >>> cut_mask(np.array([0, 1]), np.array([0.5, 0.5]), [0.5, 0.6])
        array([ True, False])
    """
    return np.asarray(scores, float) >= np.asarray(thresholds, float)[labels]
