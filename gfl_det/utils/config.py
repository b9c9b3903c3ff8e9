"""The shipped configs by name, for Python and for mmengine's ``gfl_det::`` prefix."""

from __future__ import annotations

import difflib
import os
from importlib.util import find_spec
from pathlib import Path

from mmengine import hub
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from gfl_det.errors import ConfigError, SetupError

CONFIG_ENDINGS = ('.py', '.json', '.yaml', '.yml')
PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
# An installed package carries its configs; a source tree has them beside the package.
CONFIG_FOLDERS = (PACKAGE_FOLDER / '.mim' / 'configs' / 'gfl', PACKAGE_FOLDER.parent / 'configs')


def register_package() -> None:
    """Make mmengine resolve ``gfl_det::gfl/NAME.py`` in ``_base_`` and ``mmengine.hub``.

    mmengine looks for the configs in the folder of the table's entry: beside the metadata of the
    distribution of that name, where an editable install has no configs, or else in the folder of
    the module of that name. The name of this module leads to the package that was imported, however
    it was installed.
    """
    MODULE2PACKAGE.setdefault('gfl_det', __name__)


def config_folder() -> Path:
    """Return the folder that holds the shipped configs.

    Raises:
        SetupError: The installation carries no configs.
    """
    for folder in CONFIG_FOLDERS:
        if any(folder.glob('gfl_*.py')):
            return folder
    raise SetupError(
        f'{CONFIG_FOLDERS[0]} has no configs: install gfl_det again with "pip install".'
    )


def config_names() -> list[str]:
    """Return the names that `get_config` knows, sorted."""
    return sorted(path.stem for path in config_folder().glob('*.py'))


def get_config(name: str) -> Config:
    """Load a shipped config.

    Args:
        name: The file's name, with or without ``.py``: ``gfl_r50_fpn_1x_coco``.

    Returns:
        The config with its bases merged, ready for mmengine's ``Runner.from_cfg``.

    Raises:
        ConfigError: No config has this name; the message lists those there are.
    """
    names = config_names()
    stem = name.removesuffix('.py')
    if stem not in names:
        nearest = difflib.get_close_matches(stem, names, n=1)
        hint = f' (did you mean "{nearest[0]}"?)' if nearest else ''
        raise ConfigError(f'No config is named "{name}"{hint}; there are: {", ".join(names)}.')
    return Config.fromfile(config_folder() / f'{stem}.py')


def read_config(name: str) -> Config:
    """Load a config by the ways that the tools know.

    Args:
        name: A file, the name of a shipped config, or ``PACKAGE::FOLDER/NAME.py`` for the config of
            an installed package.

    Raises:
        ConfigError: There is no such config (the nearest names are given).
    """
    package, separator, path = name.partition('::')
    if not separator:
        return Config.fromfile(_config_path(name)) if _looks_like_path(name) else get_config(name)
    if find_spec(package) is None:  # mmengine would go and install it
        raise ConfigError(f'{name} is of the package {package}, which is not installed.')
    return hub.get_config(f'{package}::{path}')


def _looks_like_path(name: str) -> bool:
    path = Path(name)
    is_file_name = path.suffix in CONFIG_ENDINGS and path.stem not in config_names()
    return path.is_file() or os.sep in name or is_file_name


def _config_path(name: str) -> str:
    """Return the path if it is a file.

    Raises:
        ConfigError: It is none; the nearest names in its folder and among shipped configs are told.
    """
    path = Path(name)
    if path.is_file():
        return name
    if path.is_dir():
        raise ConfigError(f'{name} is a folder: give a config file in it.')
    beside = [str(other) for other in path.parent.glob('*.py')]
    by_stem = {Path(known).stem: known for known in [*config_names(), *beside]}
    nearest = difflib.get_close_matches(path.stem, by_stem, n=3)
    hint = (
        f'nearest: {", ".join(by_stem[stem] for stem in nearest)}' if nearest else 'check the path'
    )
    raise ConfigError(f'There is no config {name}; {hint}.')
