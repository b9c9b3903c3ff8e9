"""gfl_det: Generalized Focal Loss for MMDetection 3.x.

Importing the package registers its parts: configs name them with the prefix, as in
``type='gfl_det.GFLHead'``. What else it offers is imported when it is first used.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gfl_det.compat import imports
from gfl_det.compat import install as _install_compat
from gfl_det.version import __version__

if TYPE_CHECKING:
    from gfl_det import calibration, datasets, evaluation, visualization
    from gfl_det.engine import amp, hooks
    from gfl_det.inference import GFLInferencer, optimize_for_inference
    from gfl_det.inference.loading import build
    from gfl_det.models import assigners, backbones, detectors, heads, losses, necks
    from gfl_det.swap import swap_head
    from gfl_det.utils.config import get_config
    from gfl_det.visualization import GFLVisualizer

# The modules that register something.
_REGISTERED = (
    'gfl_det.models.losses',
    'gfl_det.models.assigners',
    'gfl_det.models.backbones',
    'gfl_det.models.necks',
    'gfl_det.models.heads',
    'gfl_det.models.detectors',
    'gfl_det.datasets',
    'gfl_det.evaluation',
    'gfl_det.evaluation.calibration_metric',
    'gfl_det.engine.amp',
    'gfl_det.engine.hooks',
    'gfl_det.engine.training.loop',
    'gfl_det.visualization.visualizer',
)
# What is offered by name, and the module it lies in.
_OFFERED = {
    'GFLInferencer': 'gfl_det.inference',
    'GFLVisualizer': 'gfl_det.visualization',
    'build': 'gfl_det.inference.loading',
    'get_config': 'gfl_det.utils.config',
    'optimize_for_inference': 'gfl_det.inference',
    'swap_head': 'gfl_det.swap',
}
_MODULES = {
    'amp': 'gfl_det.engine.amp',
    'assigners': 'gfl_det.models.assigners',
    'backbones': 'gfl_det.models.backbones',
    'calibration': 'gfl_det.calibration',
    'datasets': 'gfl_det.datasets',
    'detectors': 'gfl_det.models.detectors',
    'engine': 'gfl_det.engine',
    'evaluation': 'gfl_det.evaluation',
    'export': 'gfl_det.inference.export',
    'heads': 'gfl_det.models.heads',
    'hooks': 'gfl_det.engine.hooks',
    'inference': 'gfl_det.inference',
    'losses': 'gfl_det.models.losses',
    'models': 'gfl_det.models',
    'necks': 'gfl_det.models.necks',
    'ops': 'gfl_det.ops',
    'swap': 'gfl_det.swap',
    'visualization': 'gfl_det.visualization',
}


@cache
def register() -> None:
    """Register the parts for configs, as importing the package does; again: nothing happens.

    ``gfl-det`` and ``python -m gfl_det`` do it when their work begins, and not for a ``--help``.

    Raises:
        SetupError: If a package is missing, broken, or of a version that another refuses.
    """
    with imports.explained():
        _install_compat()  # before the first import of mmdet.models, which needs mmcv's operators
        with imports.late():
            import_module('mmdet.models')
        for name in _REGISTERED:
            import_module(name)
        import_module('gfl_det.utils.config').register_package()


def __getattr__(name: str) -> Any:
    """Import what is offered when it is first asked for."""
    if name not in _OFFERED and name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    register()
    with imports.explained():
        if name in _MODULES:
            return import_module(_MODULES[name])
        value = getattr(import_module(_OFFERED[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFERED, *_MODULES})


if not imports.is_own_command():
    register()

__all__ = [
    'GFLInferencer',
    'GFLVisualizer',
    '__version__',
    'amp',
    'assigners',
    'backbones',
    'build',
    'calibration',
    'datasets',
    'detectors',
    'evaluation',
    'get_config',
    'heads',
    'hooks',
    'losses',
    'necks',
    'optimize_for_inference',
    'register',
    'swap_head',
    'visualization',
]
