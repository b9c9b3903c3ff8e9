"""gfl_det: Generalized Focal Loss for MMDetection 3.x.

Importing the package registers its parts: configs name them with the prefix, as in
``type='gfl_det.GFLHead'``.
"""

from .compat import imports as _imports
from .compat import install as _install_compat
from .version import __version__

if not _imports.doctor_is_running():  # it looks at what may not import
    with _imports.explained():
        _install_compat()  # before the first import of mmdet.models, which needs mmcv's operators

        from . import (
            amp,
            assigners,
            calibration,
            datasets,
            detectors,
            evaluation,
            heads,
            hooks,
            losses,
            visualization,
        )
        from .config import get_config, register_package
        from .inference import GFLInferencer, optimize_for_inference
        from .swapping import swap_head
        from .visualization import GFLVisualizer

        register_package()

__all__ = [
    'GFLInferencer',
    'GFLVisualizer',
    '__version__',
    'amp',
    'assigners',
    'calibration',
    'datasets',
    'detectors',
    'evaluation',
    'get_config',
    'heads',
    'hooks',
    'losses',
    'optimize_for_inference',
    'swap_head',
    'visualization',
]
