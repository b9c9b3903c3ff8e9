"""Weights of a trained detector that fit the same detector with a GFL head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from torch import Tensor

from gfl_det.errors import CheckpointError
from gfl_det.swap.check import build_untrained
from gfl_det.swap.swap import Swap

# Layers that read the last class features of a tower and give one score per class.
CLASS_LAYERS = ('gfl_cls', 'atss_cls', 'conv_cls', 'retina_cls')


class Transfer(NamedTuple):
    """Weights for the new config, and what became of each key."""

    state: dict[str, Tensor]  # by the new keys; the rest starts from its initialisation
    kept: dict[str, str]  # new key -> old key
    new: list[str]  # keys of the new model that nothing fits
    dropped: list[str]  # keys of the old one that nothing takes

    @property
    def report(self) -> str:
        """The keys as text: what is kept by module, the others one by one."""
        groups = Counter(_module(key) for key in self.kept)
        renamed = [f'{old} -> {new}' for new, old in self.kept.items() if _is_renamed(old, new)]
        lines = [f'kept {len(self.kept)} keys:']
        lines += [f'  {module} ({count})' for module, count in groups.items()]
        lines += [f'  {each}' for each in renamed]
        for title, keys in (('new', self.new), ('dropped', self.dropped)):
            lines += [f'{title} {len(keys)} keys:', *(f'  {key}' for key in keys)]
        return '\n'.join(lines)


def carry_over(swap: Swap, checkpoint: str) -> Transfer:
    """Read a checkpoint of the old detector and take what fits the new one.

    Args:
        swap: of the detector's config.
        checkpoint: file or address.

    Raises:
        CheckpointError: it cannot be read, or nothing in it fits.
    """
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    transfer = match_weights(swap, loaded.get('state_dict', loaded))
    if not transfer.kept:
        first = next(iter(transfer.dropped), 'nothing')
        raise CheckpointError(
            f'No key of {checkpoint} fits the model (its first is {first}): give a checkpoint of '
            'the very config whose head is swapped.'
        )
    return transfer


def save_weights(transfer: Transfer, path: str) -> None:
    """Write the weights that fit, for ``load_from``."""
    torch.save(dict(state_dict=transfer.state, meta={}), path)


def match_weights(swap: Swap, old: Mapping[str, Any]) -> Transfer:
    """Match keys by name and shape.

    Backbone, neck and the head's towers keep their names; the class layer is taken whatever it is
    called, where it has one score per class. The towers' biases are not needed beside norms, and
    factors of another head's edges (``scales``) mean something else.

    Args:
        swap: says where the head and the old neck are.
        old: the old detector's state dict.
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
    """Old keys that a new key may come from, the likeliest first."""
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
