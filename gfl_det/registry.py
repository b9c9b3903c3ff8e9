"""Child registries: our parts resolve as ``gfl_det.Name``, mmdet's by their plain names.

A child registry looks in its parent when it lacks a name, and mmdet's registries find ours through
the scope prefix, so nothing of mmdet is replaced (MMEngine documentation, "Registry"). Every
registry of mmdet has a child, because a config inherited through ``gfl_det::`` carries our scope in
all of its parts.
"""

from __future__ import annotations

from mmdet import registry as mmdet_registry
from mmengine.registry import Registry

SCOPE = 'gfl_det'


def _children() -> dict[str, Registry]:
    parents = {
        name: value for name, value in vars(mmdet_registry).items() if isinstance(value, Registry)
    }
    return {
        name: Registry(parent.name, parent=parent, scope=SCOPE, locations=[SCOPE])
        for name, parent in parents.items()
    }


_registries = _children()
MODELS = _registries['MODELS']
TASK_UTILS = _registries['TASK_UTILS']
DATASETS = _registries['DATASETS']
METRICS = _registries['METRICS']
OPTIM_WRAPPERS = _registries['OPTIM_WRAPPERS']
HOOKS = _registries['HOOKS']
LOOPS = _registries['LOOPS']
VISUALIZERS = _registries['VISUALIZERS']
MODEL_WRAPPERS = _registries['MODEL_WRAPPERS']
