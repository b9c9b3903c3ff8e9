"""Which detectors cannot take another head by their nature, each with the sentence why."""

from __future__ import annotations

from typing import Any, Literal

from mmdet.models import dense_heads, detectors
from mmdet.models.detectors.single_stage_instance_seg import SingleStageInstanceSegmentor

from gfl_det.errors import ConfigError, NotSwappableError
from gfl_det.models.detectors import KnowledgeDistillationDetector
from gfl_det.registry import MODELS
from gfl_det.swap.changes import type_name

Target = Literal['bbox_head', 'rpn_head']

COMPARING_PAIR = (
    'it is a pair of teacher and student whose losses compare their heads: swap the head of the '
    "student's own config"
)
WHOLE_DETECTORS = (
    (
        detectors.DetectionTransformer,
        'it predicts a set of boxes from learned queries, without a feature pyramid that a dense '
        'head could read',
    ),
    (
        detectors.LAD,
        'it is a pair of teacher and student whose assignment comes from the teacher: swap the '
        "head of the student's own config",
    ),
    (detectors.KnowledgeDistillationSingleStageDetector, COMPARING_PAIR),
    (KnowledgeDistillationDetector, COMPARING_PAIR),
    (
        SingleStageInstanceSegmentor,
        'its mask head reads what its box head predicts, and a GFL head predicts boxes alone',
    ),
    (
        detectors.GLIP,
        'its scores compare regions with words of a caption, so it has no classes of its own',
    ),
)
DENSE_HEADS = (
    (
        dense_heads.CornerHead,
        'it finds boxes as pairs of corners in heat maps of one scale, not in a pyramid',
    ),
    (
        dense_heads.CenterNetHead,
        'it finds boxes as peaks of a heat map of one scale, not in a pyramid',
    ),
    (
        dense_heads.RTMDetInsHead,
        'it predicts masks together with boxes, and a GFL head predicts boxes alone',
    ),
    (
        dense_heads.ATSSVLFusionHead,
        'its scores compare regions with words of a caption, so it has no classes of its own',
    ),
    (
        dense_heads.EmbeddingRPNHead,
        'its proposals are learned with the network, not found in the image',
    ),
)


def check_target(model: dict[str, Any], target: Target | None) -> Target:
    """Find the head to replace.

    Args:
        model: config of the detector.
        target: which head; None: ``bbox_head``, or ``rpn_head`` of a detector of two stages.

    Returns:
        The key of the head in the model.

    Raises:
        NotSwappableError: the detector cannot take another head; the sentence says why.
        ConfigError: it has no such head.
    """
    name = type_name(model.get('type'))
    _refuse(name, model, WHOLE_DETECTORS)
    if 'detector' in model:
        raise NotSwappableError(
            f'{name} is built around another detector, so its losses and results are not those of '
            "a head: swap the head of model.detector's own config."
        )
    found: Target = target or ('bbox_head' if model.get('bbox_head') else 'rpn_head')
    part = model.get(found)
    if not part:
        raise ConfigError(
            f'{name} has no {found} to swap: choose a detector with dense predictions, or, of two '
            'stages, target="rpn_head".'
        )
    if not isinstance(part, dict):
        raise NotSwappableError(
            f'{name} has a list of heads in {found}, which predict together: there is no single '
            'one to swap.'
        )
    if model.get('mask_head'):
        raise NotSwappableError(
            f'{name} cannot take another head: its mask head reads what its box head predicts, and '
            'a GFL head predicts boxes alone.'
        )
    _refuse(name, part, DENSE_HEADS)
    return found


def _refuse(detector: str, part: dict[str, Any], rules: tuple[tuple[type, str], ...]) -> None:
    kind = part.get('type')
    resolved = MODELS.get(kind) if isinstance(kind, str) else kind
    if resolved is None:
        raise ConfigError(
            f'{type_name(kind)} is not registered: add the module that defines it to '
            'custom_imports of the config.'
        )
    for known, reason in rules:
        if isinstance(resolved, type) and issubclass(resolved, known):
            raise NotSwappableError(f'{detector} cannot take another head: {reason}.')
