"""Configs: finding, reading, checking, overriding and walking them.

mmengine also finds the shipped configs, under the prefix ``gfl_det::``.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine import hub
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import Runner

from gfl_det.errors import ConfigError, GFLDetError, SetupError

CONFIG_ENDINGS = ('.py', '.json', '.yaml', '.yml')
PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
# An installed package contains its configs; a source tree has them beside the package.
CONFIG_FOLDERS = (PACKAGE_FOLDER / '.mim' / 'configs' / 'gfl', PACKAGE_FOLDER.parent / 'configs')
Node = dict[str, Any]
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
OWN_CONFIG = 'config.py'  # in a work dir, written by gfl-det train --data
WHOLE_CONFIG = 'config_whole.py'  # mmengine's full config beside another config
SPLITS = ('train', 'val', 'test')
PATH_KEYS = ('data_root', 'ann_file')
RUNNER_KEYS = frozenset(inspect.signature(Runner.__init__).parameters)  # allowed in any config


def load_config(name: str, settings: dict[str, Any] | None = None) -> Config:
    """Load a config and merge ``--cfg-options``.

    Args:
        name: A file, a work dir, the name of a shipped config, or ``PACKAGE::FOLDER/NAME.py`` for
            the config of an installed package, such as
            ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.
        settings: Settings of ``--cfg-options``.

    Raises:
        ConfigError: If the config does not exist (the message lists the nearest names) or cannot be
            read.
    """
    try:
        cfg = read_config(name)
    except GFLDetError:
        raise
    except SyntaxError as error:
        raise ConfigError(f'{name} is not valid Python: {error}.') from error
    except SystemExit as error:  # otherwise the tool would exit here with success
        raise ConfigError(f'{name} ends the program: remove its call of exit.') from error
    except Exception as error:  # a config is a program that can raise anything
        raise ConfigError(f'{name} cannot be read: {type(error).__name__}: {error}.') from error
    check_shape(cfg, name)
    for warning in override(cfg, settings or {}):
        print(f'warning: {warning}', file=sys.stderr)
    return cfg


def read_config(name: str) -> Config:
    """Load a config by file or name.

    Args:
        name: A file, the name of a shipped config, or ``PACKAGE::FOLDER/NAME.py`` for the config of
            an installed package.

    Raises:
        ConfigError: If the config does not exist (the message lists the nearest names).
    """
    package, separator, path = name.partition('::')
    if not separator:
        return Config.fromfile(_config_path(name)) if _looks_like_path(name) else get_config(name)
    if find_spec(package) is None:  # mmengine would try to install it
        raise ConfigError(f'{name} needs the package {package}: install it.')
    return hub.get_config(f'{package}::{path}')


def config_in(work_dir: Path) -> Path:
    """Return the config of a work dir: the editable one, otherwise mmengine's.

    Raises:
        ConfigError: If the work dir has no config, or more than one.
    """
    if (work_dir / OWN_CONFIG).is_file():
        return work_dir / OWN_CONFIG
    found = configs_in(work_dir)
    if len(found) != 1:
        what = 'several configs' if found else 'no config'
        data = '' if found else f', or give a data set as --data {work_dir}'
        raise ConfigError(f'{work_dir} has {what}: name a config file{data}.')
    return found[0]


def configs_in(work_dir: Path) -> list[Path]:
    """Return the configs in a work dir, sorted by name, without mmengine's complete one."""
    return sorted(path for path in work_dir.glob('*.py') if path.name != WHOLE_CONFIG)


def _looks_like_path(name: str) -> bool:
    path = Path(name)
    if path.is_dir() and path.name not in config_names():
        return True
    is_file_name = path.suffix in CONFIG_ENDINGS and path.stem not in config_names()
    return path.is_file() or os.sep in name or is_file_name


def _config_path(name: str) -> str:
    """Return the path of an existing config file.

    Raises:
        ConfigError: If the file does not exist; the message lists the nearest names in its folder
            and among shipped configs.
    """
    path = Path(name)
    if path.is_file():
        return name
    if path.is_dir():
        return str(config_in(path))
    beside = [str(other) for other in path.parent.glob('*.py')]
    by_stem = {Path(known).stem: known for known in [*config_names(), *beside]}
    nearest = difflib.get_close_matches(path.stem, by_stem, n=3)
    hint = (
        f'nearest: {", ".join(by_stem[stem] for stem in nearest)}' if nearest else 'check the path'
    )
    raise ConfigError(f'There is no config {name}; {hint}.')


def get_config(name: str) -> Config:
    """Load a shipped config.

    Args:
        name: Name of the file, with or without ``.py``: ``gfl_r50_fpn_1x_coco``.

    Returns:
        Config with its bases merged, ready for mmengine's ``Runner.from_cfg``.

    Raises:
        ConfigError: If no config has this name; the message lists all names.
    """
    names = config_names()
    stem = name.removesuffix('.py')
    if stem not in names:
        nearest = difflib.get_close_matches(stem, names, n=1)
        hint = f' (did you mean "{nearest[0]}"?)' if nearest else ''
        raise ConfigError(f'No config is named "{name}"{hint}; there are: {", ".join(names)}.')
    return Config.fromfile(config_folder() / f'{stem}.py')


def config_names() -> list[str]:
    """Return the sorted names that :func:`get_config` accepts."""
    return sorted(path.stem for path in config_folder().glob('*.py'))


def config_folder() -> Path:
    """Return the folder of the shipped configs.

    Raises:
        SetupError: If the installation contains no configs.
    """
    for folder in CONFIG_FOLDERS:
        if any(folder.glob('gfl_*.py')):
            return folder
    raise SetupError(
        f'{CONFIG_FOLDERS[0]} has no configs: install gfl_det again with "pip install".'
    )


def shipped_base(stem: str) -> str:
    """Return the ``_base_`` entry for a shipped config.

    mmengine finds the prefix only in an installation: a plain checkout names the file.
    """
    if CONFIG_FOLDERS[0].is_dir():
        return f'gfl_det::gfl/{stem}.py'
    return str(config_folder() / f'{stem}.py')


def register_package() -> None:
    """Make mmengine resolve ``gfl_det::gfl/NAME.py`` in ``_base_`` and ``mmengine.hub``.

    mmengine looks for configs beside the metadata of the distribution of the registered name, where
    an editable install has none, or otherwise in the folder of the module of that name. Registering
    a top-level module of the package leads to the imported package, however it was installed.
    """
    MODULE2PACKAGE.setdefault('gfl_det', 'gfl_det.version')


def check_shape(cfg: Config, name: str) -> None:
    """Check that the model and the data sets of a config are dicts.

    Args:
        cfg: Config, which may lack parts.
        name: Name of the config for messages.

    Raises:
        ConfigError: If a part is not a dict.
    """
    parts = {key: cfg.get(key) for key in ('model', *LOADERS)}
    for key in LOADERS:
        loader = parts[key]
        if isinstance(loader, dict) and 'dataset' in loader:
            parts[f'{key}.dataset'] = loader['dataset']
    for key, part in parts.items():
        is_needed = key.endswith('.dataset')
        if not isinstance(part, dict) and (part is not None or is_needed):
            raise ConfigError(f'{key} of {name} is {part!r:.60}, not a dict(type=...): correct it.')
    for split in SPLITS:
        for node in (*datasets_of(cfg, split), *metrics_of(cfg, split)):
            for key in PATH_KEYS:
                path = node.get(key) if isinstance(node, dict) else None
                if path is not None and not isinstance(path, str):
                    raise ConfigError(
                        f'{key} of {split} in {name} is {path!r:.60}: give one path as a string; '
                        'combine several files with a ConcatDataset.'
                    )


def check_model(cfg: Config) -> None:
    """Check that a config has a model.

    Raises:
        ConfigError: If the config has no model.
    """
    if not cfg.get('model'):
        raise ConfigError(f'{cfg.filename or "The config"} has no model: add model=dict(type=...).')


def check_split(cfg: Config, split: str) -> None:
    """Check that a config has the data of a split, which may be None if unused.

    Raises:
        ConfigError: If the config has no dataloader of the split.
    """
    if not cfg.get(f'{split}_dataloader'):
        raise ConfigError(
            f'{cfg.filename or "The config"} has no {split}_dataloader: add it, with its '
            f'{split}_cfg, or use another config.'
        )


def override(cfg: Config, settings: dict[str, Any]) -> list[str]:
    """Merge ``--cfg-options`` into a config; ``data_root`` moves every path below the old root.

    Returns:
        A warning per key that is missing in the config, which mmengine adds silently.

    Raises:
        ConfigError: If a value cannot be merged.
    """
    settings = dict(settings)
    if 'data_root' in settings:
        move_data_root(cfg, str(settings.pop('data_root')))
    known = sorted({path.partition('.')[2] for path in _paths(cfg.to_dict(), 'cfg')} - {''})
    warnings = []
    for key in settings:
        if key in known or key.partition('.')[0] in RUNNER_KEYS - set(cfg.keys()):
            continue
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        hint = f'; did you mean {nearest[0]}?' if nearest else ''
        warnings.append(f'the config has no {key}, so --cfg-options adds it{hint}')
    try:
        cfg.merge_from_dict(settings)
    except (KeyError, TypeError, AssertionError) as error:
        reason = error.args[0] if error.args else error
        raise ConfigError(f'--cfg-options cannot be merged into the config: {reason}.') from error
    return warnings


def move_data_root(cfg: Config, new: str) -> None:
    """Set ``data_root`` and replace the old root at the start of each path.

    A config is evaluated when it is read: overriding its variable ``data_root`` afterwards leaves
    ``data_root=data_root`` and ``ann_file=data_root + 'x.json'`` of data sets and metrics as they
    were.

    Raises:
        ConfigError: If the config has no ``data_root`` at its top level and no common one below.
    """
    datasets = [dataset for split in SPLITS for dataset in datasets_of(cfg, split)]
    roots = {dataset.get('data_root') for dataset in datasets} - {None, ''}
    old = cfg.get('data_root') or (roots.pop() if len(roots) == 1 else None)
    if old is None:
        raise ConfigError(
            'The config has no single data_root to move: set data_root of each data set, as in '
            'train_dataloader.dataset.data_root=...'
        )
    parts = [cfg.get(f'{split}_{part}') for split in SPLITS for part in ('dataloader', 'evaluator')]
    moved = set()  # splits may share a dict
    for _, node in walk(parts, ''):
        if id(node) in moved:
            continue
        moved.add(id(node))
        for key in PATH_KEYS:
            path = node.get(key)
            if isinstance(path, str) and _is_below(path, old):
                node[key] = os.path.join(new, path[len(old) :].lstrip('/'))
    cfg.data_root = new


def _paths(value: Any, path: str) -> list[str]:
    """List the dotted paths of all values, including values inside lists."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        return [path]
    return [path, *(below for key, item in items for below in _paths(item, f'{path}.{key}'))]


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip('/') + '/')


def walk(value: Any, path: str) -> Iterator[tuple[str, Node]]:
    """Yield each dict inside a value with its dotted path, outer dicts first."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from walk(item, f'{path}.{key}')
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from walk(item, f'{path}.{index}')


def type_name(kind: object) -> str:
    """Name of a part's type, which is a string or, in Python-style configs, a class."""
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def datasets_of(cfg: Config | Node, split: str) -> list[Node]:
    """Return the data sets of a split without the wrappers (repeat, concat) around them."""

    def unwrap(dataset: Node) -> Iterator[Node]:
        inner = dataset.get('datasets') or [dataset.get('dataset')]
        if inner == [None]:
            yield dataset
        for wrapped in inner:
            if isinstance(wrapped, dict):
                yield from unwrap(wrapped)

    loader = cfg.get(f'{split}_dataloader') or {}
    return list(unwrap(loader['dataset'])) if 'dataset' in loader else []


def metrics_of(cfg: Config, split: str) -> list[Node]:
    """Return the metrics of a split as a list."""
    evaluator = cfg.get(f'{split}_evaluator') or []
    return [evaluator] if isinstance(evaluator, dict) else list(evaluator)


def annotation_path(dataset: Node) -> str | None:
    """Return the path of a data set's annotation file; None if it has none."""
    name = dataset.get('ann_file')
    return join_root(dataset.get('data_root'), name) if name else None


def image_folder(dataset: Node) -> str | None:
    """Return the path of a data set's image folder; None if unspecified."""
    prefix = dataset.get('data_prefix') or {}
    folder = prefix.get('img', prefix.get('img_path'))
    return join_root(dataset.get('data_root'), folder) if folder is not None else None


def join_root(root: str | None, path: str) -> str:
    """Join paths like mmengine's data sets: absolute paths and URLs ignore the root."""
    return path if not root or os.path.isabs(path) or is_remote(path) else os.path.join(root, path)


def is_remote(path: str) -> bool:
    """Whether a path is a storage URL such as ``s3://``."""
    return '://' in path
