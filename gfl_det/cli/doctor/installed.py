"""What pip has installed, by its records: no package is imported."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from gfl_det.cli.doctor.checks import Check
from gfl_det.compat.imports import LINES, SETUPTOOLS_LINE
from gfl_det.compat.ranges import RANGES

OLDEST_PYTHON = (3, 9)
# The distributions that may bring a module; the onedl forks keep the modules' names.
DISTRIBUTIONS = {
    'torch': ('torch',),
    'numpy': ('numpy',),
    'cv2': ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python'),
    'pycocotools': ('pycocotools',),
    'sklearn': ('scikit-learn',),
    'scipy': ('scipy',),
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
}
FORK = 'onedl-'


def check_installed() -> list[Check]:
    """Check Python, each package's version and what comes twice, and ``pkg_resources``."""
    fits = sys.version_info >= OLDEST_PYTHON
    python = f'{platform.python_version()} in {sys.prefix}'
    checks = [
        Check('python', 'ok', python)
        if fits
        else Check('python', 'problem', f'{python}: 3.9 is the oldest', 'python3.11 -m venv .venv')
    ]
    checks += [check_package(module, names) for module, names in DISTRIBUTIONS.items()]
    return [*checks, check_pkg_resources()]


def check_package(module: str, names: Sequence[str]) -> Check:
    """Check one package: there once, and of a version in the range.

    Args:
        module: Its name in Python.
        names: The distributions that may bring it.
    """
    found = {name: version for name in names if (version := _version(name))}
    line = LINES.get(module, f'pip install {names[0]}')
    if not found:
        if find_spec(module) is not None:
            return Check(module, 'note', 'there, but pip does not know it')
        return Check(module, 'problem', 'not installed', line)
    text = ', '.join(f'{version} ({name})' for name, version in found.items())
    if module == 'mmcv' and len(found) > 1:
        cure = f'pip uninstall -y {" ".join(found)}; {line}'
        return Check(module, 'problem', f'{text}: they overwrite each other', cure)
    name, version = next(iter(found.items()))
    known = RANGES.get(module)
    if name.startswith(FORK):
        return Check(module, 'note', f'{text}: a fork, not among the versions tested together')
    if known is not None and not known.holds(version):
        cure = f'pip uninstall -y {name}; {line}' if module == 'mmcv' else line
        return Check(module, 'problem', f'{text}: gfl_det needs {module}{known}', cure)
    return Check(module, 'ok', text)


def check_pkg_resources() -> Check:
    """Check for the module that mmengine 0.10 finds configs of other packages with."""
    name, version = 'setuptools', _version('setuptools')
    if find_spec('pkg_resources') is not None:
        return Check(name, 'ok', f'{version} (has pkg_resources)')
    spec = find_spec('mmengine')
    folders = list((spec and spec.submodule_search_locations) or [])
    users = [Path(folder) / 'utils' / 'package_utils.py' for folder in folders]
    if any(path.is_file() and 'pkg_resources' in path.read_text() for path in users):
        text = f'{version or "not installed"}: no pkg_resources, which mmengine needs for "mmdet::"'
        return Check(name, 'problem', text, SETUPTOOLS_LINE)
    return Check(name, 'ok', f'{version}; this mmengine needs no pkg_resources')


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
