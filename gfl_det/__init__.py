"""gfl_det: Generalized Focal Loss for MMDetection 3.x.

Importing the package registers its parts: configs name them with the prefix, as in
``type='gfl_det.GFLHead'``.
"""

from .compat import install as _install_compat

_install_compat()  # before the first import of mmdet.models, which needs mmcv's operators

from . import (  # noqa: E402  (after compat, see above)
    amp,
    assigners,
    calibration,
    datasets,
    detectors,
    evaluation,
    heads,
    hooks,
    losses,
)
from .config import get_config, register_package  # noqa: E402
from .inference import optimize_for_inference  # noqa: E402
from .swapping import swap_head  # noqa: E402
from .version import __version__  # noqa: E402

register_package()

__all__ = [
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
]
