"""Settings of a config that concern priors and their assignment."""

from __future__ import annotations

from typing import Any

from gfl_det.engine.reach.advice import MOST
from gfl_det.errors import ConfigError
from gfl_det.registry import TASK_UTILS
from gfl_det.utils.config import walk

# The paper's, in the place of what a config does not say.
DEFAULTS = dict(strides=(8, 16, 32, 64, 128), anchor_scale=8.0, reg_max=MOST, topk=9, pad=32)


def head_of(model: dict[str, Any], name: str) -> dict[str, Any]:
    """Strides, anchor scale, reg_max and padding of the first head with one prior per cell.

    Args:
        model: Of a config.
        name: The config's, for the message.

    Raises:
        ConfigError: There is no such head, or its priors lie between the cells.
    """
    for _, node in walk(model, 'model'):
        anchors = node.get('anchor_generator')
        if not isinstance(anchors, dict) or 'strides' not in anchors:
            continue
        generator = TASK_UTILS.build(dict(anchors))
        if not hasattr(generator, 'base_anchors') or set(generator.num_base_priors) != {1}:
            break  # points, or several priors per cell
        if generator.center_offset:
            raise ConfigError(
                f'{name} moves its priors by center_offset={generator.center_offset}, which is not '
                'measured: leave --config out and give --strides and --anchor-scale.'
            )
        sides = [float(base[0, 2] - base[0, 0]) for base in generator.base_anchors]
        strides = [int(x) for x, _ in generator.strides]
        scales = {round(side / stride, 4) for side, stride in zip(sides, strides)}
        if len(scales) != 1:
            break
        pad = (model.get('data_preprocessor') or {}).get('pad_size_divisor', 1)
        found = dict(strides=strides, anchor_scale=scales.pop(), pad=pad)
        return dict(found, reg_max=node.get('reg_max', DEFAULTS['reg_max']))
    raise ConfigError(
        f'{name} has no head with one square prior per cell: put ours in with gfl-det swap-head.'
    )


def assigner_of(model: dict[str, Any]) -> dict[str, Any]:
    """What the config says of ATSS that changes its positives without ignored gt boxes.

    Raises:
        ConfigError: Another assigner trains.
    """
    for _, node in walk(model, 'model'):
        if str(node.get('type', '')).rpartition('.')[2] == 'ATSSAssigner':
            return {key: node[key] for key in ('topk', 'with_best_prior') if key in node}
    raise ConfigError('ATSS does not assign the priors of this config')
