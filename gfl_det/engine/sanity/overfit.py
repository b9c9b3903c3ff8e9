"""Overfitting of a single fixed batch, with its loss curve."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from gfl_det.engine.sanity.evidence import Batch, truths_of
from gfl_det.evaluation.detections import Detections, Truths
from gfl_det.evaluation.functional import COCO_TAUS, average_precision
from gfl_det.evaluation.matching import match
from gfl_det.ops.boxes import xyxy_to_xywh
from gfl_det.registry import MODELS
from gfl_det.utils.faults import move

WARM_UP = 20  # steps; a config's own warm-up may be longer than the whole check
FALL_SHARE = 0.4  # share of the steps with a decreasing rate, for the loss to settle
GOAL_FALL = 0.9  # of the initial loss
GOAL_AP = 0.9


class Scores(NamedTuple):
    """AP (0.50:0.95) on the training batch."""

    ap: float
    ap_any_class: float  # with all classes merged, to assess boxes only


class OverfitCurve(NamedTuple):
    """Result of a training on one batch."""

    losses: list[dict[str, float]]  # per step, before its update; `loss` is their sum
    scores: Scores | None  # None if a loss was not finite
    moved: float  # distance that the weights moved, relative to their norm
    rate: float  # maximum learning rate

    @property
    def fall(self) -> float:
        """Relative decrease of the loss; negative if it rose."""
        return _fall(self.losses)

    @property
    def finite(self) -> bool:
        """Whether all losses were finite."""
        return all(math.isfinite(value) for step in self.losses for value in step.values())

    @property
    def reached(self) -> bool:
        """Whether the batch was overfitted."""
        return (
            self.finite
            and self.fall >= GOAL_FALL
            and self.scores is not None
            and self.scores.ap >= GOAL_AP
        )


def overfit(
    cfg: Config,
    batch: Batch,
    steps: int,
    device: str,
    rate_factor: float | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> OverfitCurve:
    """Train a fresh model on one batch, with the config's optimizer.

    The rate warms up, and decreases in the last part. Training stops early once the batch is
    overfitted.

    Args:
        cfg: Config; call this in its default scope.
        batch: Batch to train on.
        steps: Maximum number of steps.
        device: Device to train on.
        rate_factor: Factor of the config's learning rate for a trial, which then does not decrease.
        progress: Called with step and losses at intervals.
    """
    model, wrapper = _build(cfg, device)
    factor = 1.0 if rate_factor is None else rate_factor
    rates = [group['lr'] * factor for group in wrapper.optimizer.param_groups]
    settled = steps if rate_factor is None else None
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    losses: list[dict[str, float]] = []
    scores = None
    for step in range(steps):
        for group, rate in zip(wrapper.optimizer.param_groups, rates):
            group['lr'] = rate * _share_of_rate(step, settled)
        with wrapper.optim_context(model):
            total, terms = model.train().parse_losses(model(**data, mode='loss'))
        losses.append({name: float(value.detach()) for name, value in terms.items()})
        if progress is not None and (step % 20 == 0 or step == steps - 1):
            progress(step, losses[-1])
        if not math.isfinite(losses[-1]['loss']):
            break
        wrapper.update_params(total)
        is_last = step == steps - 1
        if is_last or ((step + 1) % 50 == 0 and _fall(losses) >= GOAL_FALL):
            scores = score(model, batch)
            if scores.ap >= GOAL_AP:
                break
    way = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - start
    moved = float(way.norm() / start.norm().clamp(min=1e-12))
    return OverfitCurve(losses, scores, moved, max(rates, default=0.0))


def _build(cfg: Config, device: str) -> tuple[Any, Any]:
    """Return a fresh model and its optimizer, identical on every call."""
    torch.manual_seed(0)
    with _quiet():
        model: Any = MODELS.build(copy.deepcopy(cfg.model))
        model.init_weights()
        move(model, device)
        return model, build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))


def _share_of_rate(step: int, steps: int | None) -> float:
    """Rate schedule: warm-up; with a number of steps, a decrease over the last two fifths."""
    share = min(1.0, (step + 1) / WARM_UP)
    return share if steps is None else min(share, max(0.02, (steps - step) / (FALL_SHARE * steps)))


def score(model: Any, batch: Batch) -> Scores:
    """Evaluate detections on the pictures as the pipeline made them.

    Args:
        model: A detector with mmdet's ``predict``.
        batch: Batch with the pictures.
    """
    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(copy.deepcopy(batch), training=False)
        samples = model.predict(data['inputs'], data['data_samples'], rescale=False)
    model.train()
    gts, found = [], []
    for sample in samples:
        boxes, labels = truths_of(sample)
        gts.append((boxes, labels, np.ones(len(labels))))
        result = sample.pred_instances
        found.append(
            tuple(
                each.detach().cpu().double().numpy()
                for each in (result.bboxes, result.labels, result.scores)
            )
        )
    return Scores(*(_average_precision(gts, found, classes) for classes in (True, False)))


def _average_precision(truths: list, found: list, with_classes: bool) -> float:
    """AP for boxes, labels and scores per image; 0 if undefined."""

    def flat(parts: list) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        image = np.concatenate([np.full(len(part[1]), i) for i, part in enumerate(parts)])
        boxes, labels, scores = (np.concatenate(each) for each in zip(*parts))
        return image, labels.astype(np.int64) * with_classes, xyxy_to_xywh(boxes), scores

    image, label, boxes, _ = flat(truths)
    detections = Detections(*flat(found))
    number = int(max(label.max(initial=0), detections.label.max(initial=0))) + 1
    keys = [str(i) for i in range(len(truths))]
    names = [str(i) for i in range(number)]
    crowd = np.zeros(len(label), bool)
    known = Truths(list(range(len(truths))), keys, names, names, image, label, boxes, crowd)
    value = average_precision(match(detections, known, COCO_TAUS.tolist())).mean
    return 0.0 if math.isnan(value) else value


def _fall(losses: list[dict[str, float]]) -> float:
    last = float(np.mean([step['loss'] for step in losses[-3:]]))
    return 1 - last / max(losses[0]['loss'], 1e-12)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress mmengine's lines about every initialised weight and optimizer group."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
