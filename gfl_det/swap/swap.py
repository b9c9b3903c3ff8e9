"""Head swap: from a config to a config with a GFL head, the changes and matching weights.

The new config is checked by one training step and one prediction on noise.
"""

from __future__ import annotations

import copy
import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from mmengine.structures import InstanceData
from torch import Tensor, nn

from gfl_det.errors import CheckpointError, ConfigError, NotSwappableError
from gfl_det.registry import MODELS
from gfl_det.swap.head_config import (
    TOWER,
    Change,
    HeadName,
    count_classes,
    differences,
    explain_head,
    format_changes,
    make_head,
    plain,
    test_config,
    tower_width,
    train_config,
)
from gfl_det.swap.pyramid import Pyramid, Target, check_target, read_pyramid
from gfl_det.utils.choices import SWAP_HEADS
from gfl_det.utils.config import type_name, walk

SAMPLES = 'ATSS assigns by IoU statistics and trains all priors: no sampler'
# Layers that map the class features of a tower to one score per class.
CLASS_LAYERS = ('gfl_cls', 'atss_cls', 'conv_cls', 'retina_cls')


class Swap(NamedTuple):
    """Config with a new head, and its changes."""

    config: Config
    changes: list[Change]
    target: Target  # key of the head in the model
    pyramid: Pyramid  # inputs of the head
    wrapped_neck: bool  # the old neck is now the first of a list, with weights under neck.0

    @property
    def report(self) -> str:
        """Return every change and its reason as text."""
        return format_changes(self.changes)


def swap_head(
    cfg: Config,
    head: HeadName = 'GFLHead',
    *,
    target: Target | None = None,
    num_classes: int | None = None,
) -> Swap:
    """Replace the dense head of a detector and keep backbone, neck, data and schedule.

    Channels, strides and levels are measured by running backbone and neck on a small image of
    zeros. Levels with different channels get a 1x1 convolution each.

    Args:
        cfg: Config of a detector with one dense head or two stages; not modified.
        head: Type of the new head.
        target: ``'bbox_head'``, or ``'rpn_head'`` for the proposals of a two-stage detector; None:
            the head that the detector has.
        num_classes: Replaces the old head's number; proposals have one class.

    Returns:
        New config, complete without its bases, and the changes.

    Raises:
        NotSwappableError: If the detector's head cannot be replaced in principle; the message says
            why.
        ConfigError: If the config has no such head, cannot be built, or does not specify its
            classes.
    """
    if head not in SWAP_HEADS:
        raise ConfigError(f'head must be one of {", ".join(SWAP_HEADS)}, not {head!r}.')
    if not cfg.get('model'):
        raise ConfigError('The config has no model: add model=dict(type=...).')
    cfg = copy.deepcopy(cfg)
    model = cfg.model
    found = check_target(model, target)
    old = model[found]
    proposes = found == 'rpn_head'
    classes = 1 if proposes else count_classes(old, num_classes)
    pyramid = read_pyramid(model, old)
    changes: list[Change] = []
    wrapped = False
    if len(set(pyramid.channels)) > 1:
        wrapped = isinstance(model.get('neck'), dict)
        pyramid = _adapt(model, found, pyramid, changes)
    new = make_head(old, head, pyramid, classes, 1 if proposes else TOWER)
    changes += explain_head(f'model.{found}', old, new, pyramid)
    model[found] = new
    settle = _settle_proposals if proposes else _settle_detections
    changes += settle(model)
    changes += _register(cfg)
    return Swap(cfg, changes, found, pyramid, wrapped)


def _adapt(
    model: dict[str, Any], target: Target, pyramid: Pyramid, changes: list[Change]
) -> Pyramid:
    """Add a 1x1 convolution per level after the neck."""
    if target == 'rpn_head':
        raise NotSwappableError(
            f'The levels of the neck have {pyramid.channels} channels and the second stage reads '
            'them unchanged, so they cannot be brought to one width for the proposal head.'
        )
    neck, levels = model.get('neck'), len(pyramid.channels)
    width = tower_width(model[target], 256)
    adapter = dict(
        type='ChannelMapper',
        in_channels=list(pyramid.channels),
        kernel_size=1,
        out_channels=width,
        act_cfg=None,
        num_outs=levels,
    )
    parts = list(neck) if isinstance(neck, (list, tuple)) else [neck] if neck else []
    model['neck'] = [*parts, adapter] if parts else adapter
    names = [type_name(each['type']) for each in parts]
    changes.append(
        Change(
            'model.neck',
            ' + '.join(names) or 'none',
            ' + '.join([*names, 'ChannelMapper']),
            f'the levels have {pyramid.channels} channels and a GFL head reads all levels with the '
            f'same weights: a 1x1 convolution brings each to {width}',
        )
    )
    return pyramid._replace(channels=[width] * levels)


def _settle_detections(model: dict[str, Any]) -> list[Change]:
    old_train, old_test = (model.get(key) or {} for key in ('train_cfg', 'test_cfg'))
    model['train_cfg'], model['test_cfg'] = train_config(), test_config(old_test)
    changes = [
        Change('model.train_cfg', *differences(old_train, model['train_cfg']), SAMPLES),
        Change(
            'model.test_cfg',
            *differences(old_test, model['test_cfg']),
            'scores rank boxes directly; the number of detections per image is kept',
        ),
    ]
    return [change for change in changes if change.before != change.after]


def _settle_proposals(model: dict[str, Any]) -> list[Change]:
    """Adapt the proposal settings of a two-stage detector; the second stage is kept."""
    changes = []
    train, test = (model.get(key) or {} for key in ('train_cfg', 'test_cfg'))
    if 'rpn' in train:
        before = plain(train['rpn'])
        train['rpn'] = train_config()
        changes.append(Change('model.train_cfg.rpn', before, plain(train['rpn']), SAMPLES))
    reason = 'every proposal is kept: the second stage decides'
    for path, config in (
        ('train_cfg.rpn_proposal', train.get('rpn_proposal')),
        ('test_cfg.rpn', test.get('rpn')),
    ):
        if config:
            changes.append(
                Change(f'model.{path}.score_thr', plain(config.get('score_thr')), '0.0', reason)
            )
            config['score_thr'] = 0.0
    return changes


def _register(cfg: Config) -> list[Change]:
    """Make mmengine import gfl_det whenever the config is loaded."""
    changes = []
    custom = cfg.get('custom_imports') or {}
    imports = custom.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if 'gfl_det' not in imports:
        cfg.custom_imports = dict(imports=['gfl_det', *imports], allow_failed_imports=False)
        reason = "registers types with the prefix gfl_det., also in mmdet's own tools"
        after = str(cfg.custom_imports['imports'])
        changes.append(Change('custom_imports.imports', str(imports), after, reason))
    if cfg.get('default_scope') is None:
        cfg.default_scope = 'mmdet'
        changes.append(Change('default_scope', 'none', 'mmdet', 'unscoped names are mmdet types'))
    return changes


class Transfer(NamedTuple):
    """Weights for the new config, and the fate of each key."""

    state: dict[str, Tensor]  # by new key; other weights keep their initialisation
    kept: dict[str, str]  # new key -> old key
    new: list[str]  # new keys without matching weights
    dropped: list[str]  # unused old keys

    @property
    def report(self) -> str:
        """Return the keys as text: kept keys by module, the others individually."""
        groups = Counter(_module(key) for key in self.kept)
        renamed = [f'{old} -> {new}' for new, old in self.kept.items() if _is_renamed(old, new)]
        lines = [f'kept {len(self.kept)} keys:']
        lines += [f'  {module} ({count})' for module, count in groups.items()]
        lines += [f'  {each}' for each in renamed]
        for title, keys in (('new', self.new), ('dropped', self.dropped)):
            lines += [f'{title} {len(keys)} keys:', *(f'  {key}' for key in keys)]
        return '\n'.join(lines)


def carry_over(swap: Swap, checkpoint: str) -> Transfer:
    """Read a checkpoint of the old detector and keep the weights that fit the new one.

    Args:
        swap: Swap of the detector's config.
        checkpoint: File or URL.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or no key fits.
    """
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    transfer = match_weights(swap, loaded.get('state_dict', loaded))
    if not transfer.kept:
        first = next(iter(transfer.dropped), 'nothing')
        raise CheckpointError(
            f'No key of {checkpoint} fits the model (its first is {first}): use a checkpoint of '
            'the config whose head is swapped.'
        )
    return transfer


def save_weights(transfer: Transfer, path: str) -> None:
    """Write the matching weights for ``load_from``."""
    torch.save(dict(state_dict=transfer.state, meta={}), path)


def match_weights(swap: Swap, old: Mapping[str, Any]) -> Transfer:
    """Match keys by name and shape.

    Backbone, neck and the head's towers keep their names; the class layer is matched under any
    known name if it has one score per class. The towers' biases are redundant with norms, and the
    ``scales`` of another head's edges have another meaning.

    Args:
        swap: Swap with the positions of the head and the old neck.
        old: State dict of the old detector.
    """
    with DefaultScope.overwrite_default_scope('mmdet'):
        wanted = build_untrained(swap.config).state_dict()
    head = f'{swap.target}.'
    same_family = f'{head}gfl_reg.weight' in old
    kept: dict[str, str] = {}
    for key, value in wanted.items():
        for source in _sources(key, head, swap.wrapped_neck, same_family):
            found = old.get(source)
            if isinstance(found, Tensor) and found.shape == value.shape:
                kept[key] = source
                break
    taken = set(kept.values())
    return Transfer(
        state={key: old[source] for key, source in kept.items()},
        kept=kept,
        new=[key for key in wanted if key not in kept],
        dropped=[key for key in old if key not in taken],
    )


def _sources(key: str, head: str, wrapped_neck: bool, same_family: bool) -> list[str]:
    """Old keys that may match a new key, most likely first."""
    if wrapped_neck and key.startswith('neck.'):
        return [f'neck.{key[len("neck.0.") :]}'] if key.startswith('neck.0.') else []
    if key.startswith(f'{head}scales.') and not same_family:
        return []
    layer = key[len(head) :].partition('.')[0] if key.startswith(head) else ''
    if layer == 'gfl_cls':
        return [key.replace(layer, name) for name in CLASS_LAYERS]
    return [key]


def _module(key: str) -> str:
    parts = key.split('.')
    return '.'.join(parts[:2]) if parts[0].endswith('head') else parts[0]


def _is_renamed(old: str, new: str) -> bool:
    return _module(old) != _module(new)


# Boxes of the two images as fractions of their side: large, small and flat.
GTS = (((0.1, 0.1, 0.9, 0.8), (0.2, 0.3, 0.45, 0.5)), ((0.05, 0.6, 0.95, 0.75),))


class Outcome(NamedTuple):
    """Result of checking a config."""

    losses: dict[str, float]
    detections: int  # of both images, at score threshold 0
    parameters: int  # of the model


def check_config(cfg: Config, side: int = 128, device: str = 'cpu') -> Outcome:
    """Build a model with random weights, train it for one step, and predict.

    Args:
        cfg: Complete config.
        side: Side of the square images, px.
        device: Device to run on.

    Returns:
        Losses, number of detections and number of parameters.

    Raises:
        ConfigError: If a loss or a gradient is not finite, or a trained parameter gets no gradient.
        MissingOpError: If a part needs compiled mmcv.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        model: Any = build_untrained(cfg)
        _initialise(model)
    if MessageHub.get_current_instance().get_info('iter') is None:
        MessageHub.get_current_instance().update_info('iter', 0)  # read by some augmentations
    model.to(device)
    data = model.data_preprocessor(_batch(cfg, side), training=True)
    total, losses = model.train().parse_losses(model(**data, mode='loss'))
    values = {name: float(value.detach()) for name, value in losses.items()}
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise ConfigError(f'The first training step gives a NaN or infinite {wrong[0]}.')
    total.backward()
    _check_gradients(model)
    with torch.no_grad():
        results = model.eval()(**data, mode='predict')
    count = sum(len(each.pred_instances) for each in results)
    return Outcome(values, count, sum(each.numel() for each in model.parameters()))


def build_untrained(cfg: Config) -> nn.Module:
    """Build a model with initial weights, without downloading any."""
    config = without_files(cfg.model)
    for _, node in walk(config.get('test_cfg') or {}, 'test_cfg'):
        if 'score_thr' in node:
            node['score_thr'] = 0.0  # an untrained head exceeds no other threshold
    return MODELS.build(config)


def _initialise(model: Any) -> None:
    """Initialise the weights without mmengine's log of each of them."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)


def without_files(model: dict[str, Any]) -> dict[str, Any]:
    """Copy of a model's config without pretrained weights and image resizing."""
    config = copy.deepcopy(model)
    for _, node in walk(config, 'model'):
        inits = node.get('init_cfg')
        inits = inits if isinstance(inits, (list, tuple)) else [inits]
        # Some backbones (PVT) load a checkpoint themselves from an init_cfg without a type.
        if any(isinstance(each, dict) and 'checkpoint' in each for each in inits):
            node['init_cfg'] = None
    (config.get('data_preprocessor') or {}).pop('batch_augments', None)
    return config


def _batch(cfg: Config, side: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for boxes in GTS:
        gts = InstanceData(
            bboxes=torch.tensor(boxes) * side,
            labels=torch.zeros(len(boxes), dtype=torch.long),
            masks=BitmapMasks(np.ones((len(boxes), side, side), np.uint8), side, side),
        )
        none = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        sample = DetDataSample(gt_instances=gts, ignored_instances=none)
        shape = (side, side)
        sample.set_metainfo(
            dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), flip=False)
        )
        samples.append(sample)
    images = [
        torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator) for _ in GTS
    ]
    return dict(inputs=images, data_samples=samples)


def _check_gradients(model: nn.Module) -> None:
    for part in ('bbox_head', 'rpn_head'):
        for name, value in getattr(model, part, nn.Identity()).named_parameters():
            if not value.requires_grad:
                continue
            if value.grad is None:
                raise ConfigError(f'{part}.{name} gets no gradient in the first training step.')
            if not value.grad.isfinite().all():
                raise ConfigError(f'The gradient of {part}.{name} is NaN or infinite.')
