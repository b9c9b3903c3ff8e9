"""gfl_det: Generalized Focal Loss for MMDetection 3.x.

Importing the package registers its parts: configs name them with the prefix, as in
``type='gfl_det.GFLHead'``.
"""

from gfl_det.compat import imports
from gfl_det.compat import install as _install_compat
from gfl_det.version import __version__

if not imports.doctor_is_running():  # it looks at what may not import
    with imports.explained():
        _install_compat()  # before the first import of mmdet.models, which needs mmcv's operators

        from gfl_det import calibration, datasets, evaluation, visualization
        from gfl_det.engine import amp, hooks
        from gfl_det.inference import GFLInferencer, optimize_for_inference
        from gfl_det.models import assigners, backbones, detectors, heads, losses, necks
        from gfl_det.swap import swap_head
        from gfl_det.utils.config import get_config, register_package
        from gfl_det.visualization import GFLVisualizer

        register_package()

__all__ = [
    'GFLInferencer',
    'GFLVisualizer',
    '__version__',
    'amp',
    'assigners',
    'backbones',
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
    'swap_head',
    'visualization',
]
