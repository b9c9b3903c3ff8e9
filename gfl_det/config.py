"""The shipped configs by name, for Python and for mmengine's ``gfl_det::`` prefix."""

from __future__ import annotations

import difflib
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from gfl_det.errors import ConfigError, SetupError

PACKAGE_FOLDER = Path(__file__).resolve().parent
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
