"""The strides of a head: whether they are those of the features that it is given.

A head that is told other strides places every prior elsewhere, and levels without a stride are left
out: both train, to a poor detector.
"""

from __future__ import annotations

from mmdet.models.dense_heads import ATSSHead
from mmdet.models.dense_heads import GFLHead as MMDetGFLHead
from mmdet.registry import MODELS
from mmengine.config import Config

from gfl_det.errors import ConfigError, GFLDetError
from gfl_det.models.heads import GFLHead
from gfl_det.swap.pyramid import declared_strides, measure_strides

HEADS = (GFLHead, MMDetGFLHead, ATSSHead)  # others may set their priors apart from the features


def check_pyramid(cfg: Config) -> None:
    """Compare the strides in the config of a head with those of backbone and neck.

    Raises:
        ConfigError: They differ, in number or size.
    """
    head = cfg.model.get('bbox_head')
    if not isinstance(head, dict) or not _is_checked(head.get('type')):
        return
    declared = declared_strides(head)
    if not declared:
        return
    try:
        measured = measure_strides(cfg.model)
    except GFLDetError:  # building the model reports what is wrong
        return
    if declared == measured:
        return
    raise ConfigError(
        f'The strides of model.bbox_head are {declared}, but backbone and neck give '
        f'{len(measured)} levels of strides {measured}: set strides={measured}, or give '
        f'{len(declared)} levels (out_indices of the backbone, start_level and num_outs of the '
        'neck).'
    )


def _is_checked(kind: object) -> bool:
    known = MODELS.get(kind) if isinstance(kind, str) else kind
    return isinstance(known, type) and issubclass(known, HEADS)
