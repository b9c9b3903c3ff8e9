"""Child registries: our parts resolve as ``gfl_det.Name``, mmdet's by their plain names.

A child registry looks in its parent when it lacks a name, and mmdet's registries find ours through
the scope prefix, so nothing of mmdet is replaced (MMEngine documentation, "Registry").
"""

from __future__ import annotations

from mmdet import registry as mmdet_registry
from mmengine.registry import Registry

SCOPE = 'gfl_det'


def _child(name: str) -> Registry:
    parent = getattr(mmdet_registry, name)
    return Registry(parent.name, parent=parent, scope=SCOPE, locations=[SCOPE])


MODELS = _child('MODELS')
TASK_UTILS = _child('TASK_UTILS')
DATASETS = _child('DATASETS')
TRANSFORMS = _child('TRANSFORMS')
HOOKS = _child('HOOKS')
METRICS = _child('METRICS')
