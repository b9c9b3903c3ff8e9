"""Installed versions, and workarounds for packages that are too new or too old."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec

import torch
from mmengine.utils import digit_version

from gfl_det.compat import ops
from gfl_det.errors import SetupError
from gfl_det.utils.faults import importing_module

# Versions whose results were compared with pycocotools; setup.py requires the same.
FASTER_COCO_EVAL = 'faster-coco-eval>=1.6.5,<1.9'
PACKAGES = ('torch', 'numpy', 'mmengine', 'mmcv', 'mmdet')


class MissingPackageError(SetupError, ModuleNotFoundError):
    """Missing package that mmengine needs; also the error type that its import expects."""


class PkgResourcesGuard:
    """Last import finder, which explains a missing ``pkg_resources`` to users of mmengine.

    mmengine 0.10 needs it to resolve ``mmdet::`` in configs, and setuptools 81 dropped it. Other
    importers get the usual error.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find nothing, and explain a missing ``pkg_resources``.

        Raises:
            MissingPackageError: If mmengine imports ``pkg_resources``.
        """
        if name == 'pkg_resources' and importing_module(__name__).split('.')[0] == 'mmengine':
            raise MissingPackageError(
                'mmengine needs pkg_resources to find configs of another package, such as those '
                'of "mmdet::", and this setuptools lacks it: run `pip install "setuptools<81"`.',
                name=name,
            )
        return None


def install() -> None:
    """Explain a missing ``pkg_resources`` if, and only if, mmengine imports it."""
    if PkgResourcesGuard not in sys.meta_path:
        sys.meta_path.append(PkgResourcesGuard)


def report() -> dict[str, str]:
    """Return versions by package, the kind of mmcv's operators, and the NMS in use."""
    versions = {'python': platform.python_version()}
    for name in PACKAGES:
        versions[name] = str(importlib.import_module(name).__version__)
    if ops.stand_in_is_used():
        versions['mmcv'] += ' (lite, with stand-in operators)'
        versions['nms'] = 'gfl_det, with the results of compiled mmcv'
    else:
        versions['mmcv'] += ' (compiled)'
        versions['nms'] = 'compiled mmcv'
    return versions


def has_faster_coco_eval() -> bool:
    """Whether faster_coco_eval is installed in a compared version."""
    name, oldest, newer = re.split('>=|,<', FASTER_COCO_EVAL)
    try:
        installed = digit_version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
    return digit_version(oldest) <= installed < digit_version(newer)


def graph_is_kept() -> bool:
    """Whether another backward pass may follow the current one (``retain_graph``)."""
    ask = getattr(torch._C._autograd, '_get_current_graph_task_keep_graph', None)
    return True if ask is None else ask()  # torch before 2.6 cannot tell
