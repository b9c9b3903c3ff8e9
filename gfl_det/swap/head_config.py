"""Config of the new head, and the changes of a swap with their reasons.

The new head is derived from the old one and from the pyramid in front of it.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from gfl_det.errors import ConfigError
from gfl_det.models.heads.gfl_head import (
    DEFAULT_ANCHORS,
    DEFAULT_BOX_LOSS,
    DEFAULT_DFL,
    DEFAULT_NORM,
)
from gfl_det.swap.pyramid import Pyramid
from gfl_det.utils.config import type_name

WIDTH = 96
HeadName = Literal['GFLHead', 'GFLv2Head']
TOWER = 4  # convolutions per tower in the paper


class Change(NamedTuple):
    """Change of a config."""

    path: str  # dotted path in the config
    before: str
    after: str
    reason: str


def format_changes(changes: Sequence[Change]) -> str:
    """Format the changes as text, with full values."""
    lines = []
    for path, before, after, reason in changes:
        line = f'{path}: {before} -> {after}'
        if len(line) + 2 <= WIDTH:
            lines.append(f'  {line}')
        else:
            lines += _wrapped(f'{path}: {before}', '  ') + _wrapped(f'-> {after}', '      ')
        lines += _wrapped(f'({reason})', '      ')
    return '\n'.join(lines)


def differences(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    """Settings in which two configs differ, as text before and after."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    before, after = (
        ', '.join(f'{key}={plain(config[key])}' for key in keys if key in config)
        for config in (old, new)
    )
    return before or 'none', after or 'none'


def plain(value: object) -> str:
    """Format a value on one line, and a part as ``Type(setting=...)``."""
    if value is None:
        return 'none'
    if isinstance(value, dict):
        settings = ', '.join(
            f'{key}={plain(item)}' for key, item in value.items() if key not in ('type', '_scope_')
        )
        return f'{type_name(value["type"]) if "type" in value else ""}({settings})'
    if isinstance(value, (list, tuple)) and any(isinstance(each, dict) for each in value):
        return ' + '.join(map(plain, value))
    return type_name(value) if isinstance(value, type) else str(value)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f'{indent}    ',
        break_long_words=False,
        break_on_hyphens=False,
    )


def make_head(
    old: dict[str, Any],
    name: HeadName,
    pyramid: Pyramid,
    num_classes: int,
    default_convs: int = TOWER,
) -> dict[str, Any]:
    """Make the config of the new head.

    Args:
        old: Config of the old head, whose tower size is kept.
        name: Type of the new head.
        pyramid: Pyramid with equal channels on all levels.
        num_classes: Number of classes without background.
        default_convs: Tower length if the old head specifies none.
    """
    length = old.get('stacked_convs', old.get('num_convs', default_convs))
    norm = old.get('norm_cfg') or {}
    norm = dict(norm) if norm.get('type') == 'GN' else dict(DEFAULT_NORM)
    groups = norm['num_groups']
    return dict(
        type=f'gfl_det.{name}',
        num_classes=num_classes,
        in_channels=pyramid.channels[0],
        stacked_convs=min(length, TOWER),
        feat_channels=-(-tower_width(old, pyramid.channels[0]) // groups) * groups,
        norm_cfg=norm,
        anchor_generator=_anchors(old.get('anchor_generator'), pyramid),
        loss_cls=dict(type='gfl_det.QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(DEFAULT_BOX_LOSS),
        loss_dfl=dict(DEFAULT_DFL),
        reg_max=old.get('reg_max', 16),
    )


def tower_width(old: dict[str, Any], default: int) -> int:
    """Channels of the old head's towers, or the default if unspecified."""
    width = old.get('feat_channels')
    return width if isinstance(width, int) else default


def train_config() -> dict[str, Any]:
    """Training config of the head."""
    return dict(
        assigner=dict(type='gfl_det.ATSSAssigner', topk=9),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    )


def test_config(old: dict[str, Any]) -> dict[str, Any]:
    """Test config of the head; detections per image depend on the data and are kept."""
    limit = old.get('max_per_img')
    return dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=limit if isinstance(limit, int) and limit > 0 else 100,
    )


def count_classes(old: dict[str, Any], asked: int | None) -> int:
    """Number of classes: as requested, otherwise the old head's.

    Raises:
        ConfigError: If neither is a positive number.
    """
    count = asked if asked is not None else old.get('num_classes')
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(
            f'{type_name(old.get("type"))} does not specify the number of classes '
            f'(num_classes={count!r}): give num_classes.'
        )
    return count


def explain_head(
    path: str, old: dict[str, Any], new: dict[str, Any], pyramid: Pyramid
) -> list[Change]:
    """Changed settings of the head, with reasons."""
    bins = new['reg_max'] + 1
    strides = 'configured' if pyramid.declared else f'measured on {pyramid.side} pixels'
    reasons = {
        'type': 'quality scores and box edge distributions',
        'num_classes': 'one for proposals, otherwise the requested number',
        'in_channels': 'output channels of the neck, measured by running it',
        'stacked_convs': f'as in the old head, at most {TOWER} as in the paper',
        'feat_channels': "a multiple of the groups of the towers' norms",
        'norm_cfg': 'norms of the towers, independent of the batch size',
        'anchor_generator': 'one square prior per cell, 8 strides wide; strides '
        f'{pyramid.strides} are {strides}',
        'loss_cls': 'Quality Focal Loss: the target of a score is the IoU of its box',
        'loss_bbox': 'GIoU, weighted by the scores',
        'loss_dfl': 'Distribution Focal Loss of the edges',
        'reg_max': f'an edge is a distribution over {bins} bins, up to {bins - 1} strides or '
        f'{(bins - 1) * max(pyramid.strides)} pixels on the coarsest level',
    }
    changes = [
        Change(f'{path}.{key}', plain(old.get(key)), plain(value), reasons[key])
        for key, value in new.items()
        if old.get(key) != value
    ]
    gone = sorted(set(old) - set(new) - {'_scope_'})
    if gone:
        reason = f'settings only of {type_name(old["type"])}'
        changes.append(Change(path, ', '.join(gone), 'removed', reason))
    return changes


def _anchors(old: Any, pyramid: Pyramid) -> dict[str, Any]:
    """Config of GFL's priors, with the centre offset of an old head of the same kind."""
    new = {**copy.deepcopy(DEFAULT_ANCHORS), 'strides': list(pyramid.strides)}
    if isinstance(old, dict) and 'center_offset' in old:
        rest = {key: value for key, value in old.items() if key != 'center_offset'}
        if rest == new:
            new['center_offset'] = old['center_offset']
    return new
