"""Packaging: the ranges gfl_det runs on, and the configs that travel inside the wheel.

The three requirements files pin the versions that were tested together.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PROBE = """
import importlib.util, pathlib
spec = importlib.util.find_spec('mmcv')
folders = (spec and spec.submodule_search_locations) or []
print(any(any(pathlib.Path(folder).glob('_ext.*')) for folder in folders))
"""


def has_compiled_mmcv() -> bool:
    """Ask fresh interpreters, since pip's build isolation hides the target's site-packages here.

    The isolation works through PYTHONPATH, which ``-E`` ignores; without ``-E`` the user's own
    PYTHONPATH counts too.
    """
    commands = ([sys.executable, *flags, '-c', PROBE] for flags in ([], ['-E']))
    return any('True' in subprocess.check_output(command, text=True) for command in commands)


def requirements() -> list[str]:
    """mmcv and mmcv-lite own the same folder: asking for lite would overwrite compiled ops."""
    mmcv = [] if has_compiled_mmcv() else ['mmcv-lite>=2.0.1,<2.2']  # mmdet 3.3 refuses 2.2
    return [
        *mmcv,
        'mmdet>=3.3,<4',
        'mmengine>=0.10.3,<1',
        'msgspec>=0.18',  # annotation files of millions of boxes; 0.2 MB, without dependencies
        'numpy',
        'opencv-python',
        'pillow',  # letters in pictures; matplotlib needs it anyway
        'pycocotools',
        'rich>=12',  # tables and progress in terminals
        'scikit-learn',  # the scans of the embedded dataset, isotonic regression
        'scipy>=1.10',  # exact fits of calibrators; imports its submodules when they are used
        'shtab>=1.6',  # scripts that complete commands in shells
        'setuptools<81',  # mmengine imports pkg_resources, which later versions drop
        'torch>=2.1',
    ]


class BuildWithConfigs(build_py):
    """Fill ``gfl_det/.mim``, where mmengine's prefix and OpenMMLab's mim look for configs."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            fill_mim(ROOT / 'gfl_det' / '.mim', os.symlink)
        else:
            fill_mim(Path(self.build_lib) / 'gfl_det' / '.mim', copy_folder)


def copy_folder(source: Path, target: Path) -> None:
    # Benchmarks and proofs run from projects/, which is not in the wheel.
    ignored = ('__pycache__', '*.yml', 'benchmark*.py', 'prove_*.py')
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*ignored))


def fill_mim(mim: Path, place) -> None:
    shutil.rmtree(mim, ignore_errors=True)
    (mim / 'configs').mkdir(parents=True)
    place(ROOT / 'configs', mim / 'configs' / 'gfl')
    place(ROOT / 'tools', mim / 'tools')
    shutil.copy(ROOT / 'model-index.yml', mim)
    # mmengine wants a folder between the package and the config: gfl_det::gfl/NAME.py.
    metafile = (ROOT / 'configs' / 'metafile.yml').read_text()
    shipped = metafile.replace('Config: configs/', 'Config: configs/gfl/')
    (mim / 'configs' / 'metafile.yml').write_text(shipped)


setup(
    name='gfl_det',
    version=runpy.run_path(str(ROOT / 'gfl_det' / 'version.py'))['__version__'],
    description='Generalized Focal Loss detectors for MMDetection 3.x, without a compiler',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',  # up to 3.13 in .github/workflows/ci.yml
    packages=find_packages(include=['gfl_det', 'gfl_det.*']),
    package_data={
        'gfl_det': ['py.typed'],
        'gfl_det.visualization.demo': ['page/*'],
        'gfl_det.visualization.report': ['page/*'],
    },
    install_requires=requirements(),
    # gfl_det/compat/versions.py knows the same range.
    extras_require={
        'demo': ['starlette>=0.27', 'uvicorn>=0.22'],  # the page of gfl-det demo
        'faster': ['faster-coco-eval>=1.6.5,<1.9'],
        # torch's exporter, and what runs the files (gfl_det/inference/export/onnx_file.py).
        'onnx': ['onnx>=1.16', 'onnxscript>=0.5', 'onnxruntime>=1.18'],
        'openvino': ['openvino>=2025.0', 'nncf>=2.15'],
        'docs': ['mkdocs-material>=9.5', 'mkdocstrings[python]>=0.26'],
        'pandas': ['pandas>=2'],  # Results.to_pandas
        'ray': ['pyarrow>=14', 'ray[data]>=2.51,<3'],  # gfl-det infer-many
        'tensorboard': ['tensorboard'],
        'tiff': ['tifffile>=2023'],  # large TIFFs are mapped instead of read
        'wandb': ['wandb'],
    },
    entry_points={'console_scripts': ['gfl-det = gfl_det.cli.main:main']},
    cmdclass={'build_py': BuildWithConfigs},
    zip_safe=False,  # mmengine opens the configs as files
)
