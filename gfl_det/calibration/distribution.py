"""Calibrators that predict a detection's IoU from its score and edge distributions.

The evidence is the score, the shape of the edge distributions and the overlap with better boxes, or
the size of the box: equal scores may mean less for small boxes than for large ones. A logistic
model with an offset per class is followed by isotonic regression per class. The isotonic maps are
fitted on out-of-fold predictions (five folds of images), so that they correct the model as it
behaves on unseen images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import scipy

from gfl_det.calibration.calibrators import (
    ClassMap,
    Cut,
    FitSource,
    FittedCalibrator,
    check_labels,
    check_protocol,
    cut_classes,
    fit_data,
    fit_maps,
    source_of,
    uncut_classes,
)
from gfl_det.calibration.logistic import LogisticModel, fit_logistic, predict_unseen
from gfl_det.calibration.maps import Identity, fit_isotonic, logit
from gfl_det.errors import ConfigError, DataError
from gfl_det.evaluation.detections import Detections, GroundTruth, check_detections
from gfl_det.evaluation.functional import Target, targets_of
from gfl_det.evaluation.matching import ZeroOverlap, overlaps

Group = Literal['score', 'distribution', 'overlap', 'box']
GROUPS: tuple[Group, ...] = get_args(Group)
DEFAULT_GROUPS: tuple[Group, ...] = ('score', 'distribution', 'overlap')
# Columns per group, in order.
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
    # Calibration conditional on the box: Kueppers et al., CVPRW 2020, and arXiv 2112.01901.
    'box': (
        'log width in px',
        'log height in px',
        'logit of the score times log side',
    ),
}
FLOOR = 1e-4  # for spreads over sides, before the logarithm
MIN_SIDE_PX = 1.0
# Isotonic regression makes many scores equal. This share of the model's own probability keeps
# their order, and moves a score by at most as much.
OWN_SHARE = 0.01


class EdgeDetections(NamedTuple):
    """N detections with their edge distributions."""

    detections: Detections
    logits: np.ndarray  # (N, 4, num_bins)
    bin_widths: np.ndarray  # (N, 4) px

    def take(self, chosen: np.ndarray) -> EdgeDetections:
        """Select by a mask or indices, in order."""
        found = self.detections.take(chosen)
        return EdgeDetections(found, self.logits[chosen], self.bin_widths[chosen])


def evidence(found: EdgeDetections, groups: Sequence[Group] = DEFAULT_GROUPS) -> np.ndarray:
    """Compute the evidence columns of the groups.

    Args:
        found: N detections; for 'overlap' they must include all that NMS kept per image.
        groups: Keys of :data:`COLUMNS`, at least one.

    Returns:
        ``(N, F)`` float64, finite.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.6]))
        >>> edges = EdgeDetections(found, np.zeros((1, 4, 5)), np.full((1, 4), 8.0))
        >>> evidence(edges, groups=['score', 'overlap']).round(3)
        array([[0.405, 0.   , 0.   ]])
    """
    return np.concatenate([EVIDENCE[group](found) for group in groups], axis=1)


def _score(found: EdgeDetections) -> np.ndarray:
    return logit(found.detections.scores)[:, None]


def _distribution(found: EdgeDetections) -> np.ndarray:
    shares = scipy.special.softmax(found.logits.astype(float), axis=-1)
    bins = np.arange(shares.shape[-1])
    mean = shares @ bins
    spread = np.sqrt((shares * (bins - mean[..., None]) ** 2).sum(-1)) * found.bin_widths
    entropy = scipy.special.entr(shares).sum(-1)
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


def _box(found: EdgeDetections) -> np.ndarray:
    sides = np.log(np.maximum(found.detections.boxes[:, 2:], MIN_SIDE_PX))
    return np.c_[sides, logit(found.detections.scores) * sides.mean(1)]


def _overlap(found: EdgeDetections) -> np.ndarray:
    """Largest IoU with a higher-scored box of the image, its class's and another's.

    Earlier boxes win ties.
    """
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


EVIDENCE = dict(score=_score, distribution=_distribution, overlap=_overlap, box=_box)


def _overlap_of_classes(found: EdgeDetections, scores: np.ndarray) -> np.ndarray:
    """As :func:`_overlap`, ``(N * C, 2)``, if each box had each class with its score ``(N, C)``."""
    image, label, boxes, own = found.detections
    number, classes = scores.shape
    nearest = np.zeros((number, classes, 2))
    for index in np.unique(image):
        mine = np.flatnonzero(image == index)
        row, other = (each.ravel() for each in np.meshgrid(mine, mine, indexing='ij'))
        iou = overlaps(boxes[row], boxes[other], np.zeros(len(row), bool))
        iou[row == other] = 0
        above = own[other][:, None] > scores[row]
        above |= (own[other][:, None] == scores[row]) & (other < row)[:, None]
        better = np.where(above, iou[:, None], 0).reshape(len(mine), len(mine), classes)
        same = (label[mine][:, None] == np.arange(classes))[None]
        nearest[mine] = np.stack([(better * same).max(1), (better * ~same).max(1)], axis=-1)
    return nearest.reshape(-1, 2)


@dataclass(frozen=True)
class DistributionSettings:
    """Settings of a fit of :class:`DistributionCalibrator`.

    Args:
        groups: Groups of evidence, see :data:`COLUMNS`.
        tau, target, cuts, zero_overlap: See :class:`.calibrators.Settings`.

    Raises:
        ConfigError: If a value is out of range.
    """

    groups: tuple[Group, ...] = DEFAULT_GROUPS
    tau: float = 0.0
    target: Target = 'iou'
    cuts: tuple[Cut, Cut] = (0.0, 'lrp')
    zero_overlap: ZeroOverlap = 'oracle'

    def __post_init__(self) -> None:
        if not self.groups or not set(self.groups) <= set(GROUPS):
            raise ConfigError(f'groups of evidence must be some of {GROUPS}, not {self.groups!r}')
        check_protocol(self)

    @property
    def columns(self) -> list[str]:
        """Names of the evidence columns."""
        return [name for group in self.groups for name in COLUMNS[group]]


@dataclass(frozen=True)
class DistributionCalibrator(FittedCalibrator):
    """Fitted model of evidence with maps per class; :mod:`.files` saves and loads it."""

    settings: DistributionSettings
    score_type: str  # name of a head
    num_bins: int  # of the edge distributions
    model: LogisticModel
    classes: tuple[ClassMap, ...]  # in label order
    source: FitSource

    def calibrate(self, found: EdgeDetections) -> np.ndarray:
        """Predict the IoUs of detections without cuts, as a detector does after NMS.

        Args:
            found: N detections, all that NMS kept per image.

        Returns:
            ``(N,)`` float64 in [0, 1].

        Raises:
            DataError: If a score is NaN or outside [0, 1], a label is unknown, or the number of
                bins differs.
        """
        self.check_input(found)
        return self.finish(
            self.model(evidence(found, self.settings.groups), found.detections.label), found
        )

    def calibrate_classes(self, found: EdgeDetections, scores: np.ndarray) -> np.ndarray:
        """Predict the IoU of every box for every class; for its own, as :meth:`calibrate`.

        Args:
            found: N detections, all that NMS kept per image.
            scores: ``(N, C)`` raw scores of all classes.

        Returns:
            ``(N, C)`` float64 in [0, 1].

        Raises:
            DataError: As :meth:`calibrate`.
        """
        self.check_input(found)
        number, classes = scores.shape
        rows = found.take(np.repeat(np.arange(number), classes))
        label, values = np.tile(np.arange(classes), number), scores.ravel()
        rows = rows._replace(detections=rows.detections._replace(label=label, scores=values))
        columns = [
            _overlap_of_classes(found, scores) if group == 'overlap' else EVIDENCE[group](rows)
            for group in self.settings.groups
        ]
        predicted = self.model(np.concatenate(columns, axis=1), label)
        return self.finish(predicted, rows).reshape(number, classes)

    def check_input(self, found: EdgeDetections) -> None:
        """Refuse detections of another kind; see :meth:`calibrate`."""
        check_detections(found.detections)
        check_labels(found.detections.label, self.class_names)
        if found.logits.shape[-1] != self.num_bins:
            raise DataError(
                f'the calibrator was fitted for distributions with {self.num_bins} bins, not '
                f'{found.logits.shape[-1]}: fit one for this reg_max'
            )

    def finish(self, predicted: np.ndarray, found: EdgeDetections) -> np.ndarray:
        """The model's probabilities ``(N,)``, mapped per class."""
        label = found.detections.label
        values = found.detections.scores.astype(float)
        for index in np.unique(label):
            mine, score_map = label == index, self.classes[index].map
            if not isinstance(score_map, Identity):
                mapped = score_map(predicted[mine])
                values[mine] = mapped + OWN_SHARE * (predicted[mine] - mapped)
        return values

    def apply(self, found: EdgeDetections) -> tuple[EdgeDetections, np.ndarray]:
        """Cut, predict and cut again: the operating point that the calibrator was fitted for.

        Returns:
            The kept detections in order, with predicted scores, and their indices.
        """
        mapped = found._replace(detections=found.detections._replace(scores=self.calibrate(found)))
        rows = np.flatnonzero(self.kept(found.detections, mapped.detections))
        return mapped.take(rows), rows

    def for_classes(self, names: Sequence[str]) -> DistributionCalibrator:
        """Copy with the classes in the order of the names.

        Raises:
            DataError: If the calibrator was not fitted for one of them.
        """
        order = self.order_of(names)
        offsets = tuple(self.model.offsets[index] for index in order)
        return replace(
            self,
            classes=tuple(self.classes[index] for index in order),
            model=replace(self.model, offsets=offsets),
        )


def fit_distribution_calibrator(
    found: EdgeDetections,
    truths: GroundTruth,
    settings: DistributionSettings | None = None,
    score_type: str = 'GFLHead',
) -> DistributionCalibrator:
    """Fit a calibrator on a split that is not used for evaluation.

    Args:
        found: Detections after NMS, with raw scores: all of each image.
        truths: Ground truth of the same images.
        settings: Settings; None: the defaults.
        score_type: Name of the head; checked when the calibrator is applied.

    Raises:
        DataError: If there are no detections, or none with a class that has gt boxes.

    Example:
        >>> square = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> image = label = np.zeros(1, int)
        >>> gts = GroundTruth([7], [''], [1], ['cat'], image, label, square, np.zeros(1, bool))
        >>> found = Detections(image, label, square, np.array([0.6]))
        >>> edges = EdgeDetections(found, np.zeros((1, 4, 5)), np.full((1, 4), 8.0))
        >>> fitted = fit_distribution_calibrator(edges, gts, DistributionSettings(cuts=(0, 0)))
        >>> fitted.class_names, fitted.source.detections
        (['cat'], 1)
    """
    settings = settings or DistributionSettings()
    raw = found.detections
    data = fit_data(raw, truths, settings)
    columns, number = evidence(found, settings.groups), len(truths.category_ids)
    targets = targets_of(data.matches, settings.target)
    given = columns[data.rows], raw.label[data.rows], targets, number
    model = fit_logistic(*given)
    unseen = predict_unseen(*given, raw.image[data.rows])
    uncut = DistributionCalibrator(
        settings,
        score_type,
        found.logits.shape[-1],
        model,
        uncut_classes(data, truths, fit_maps(data, unseen, targets, fit_isotonic)),
        source_of(truths, raw),
    )
    predicted = model(columns, raw.label)
    predicted[data.rows] = unseen  # thresholds are for unseen images too
    mapped = raw._replace(scores=uncut.finish(predicted, found))
    return replace(uncut, classes=cut_classes(uncut.classes, mapped, data, truths, settings))
