"""Option ``--data PATH`` instead of a config: configs from data sets and their work dirs."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gfl_det.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import Tensor

    from gfl_det.compat.published import PublishedModel
    from gfl_det.datasets.formats.pictures import DataPart, OwnData
    from gfl_det.engine.own_data.plan import StartingPoint

DEFAULT_MODEL = 'nanodet-plus-m_416_coco'  # if its weights are available
SCRATCH_MODEL = 'gfl_r18_fpn_bccd'  # for random initial weights
CHECKPOINT_ENDING = '.pth'
KEPT_NAME = 'config.py.before'
PLAN_FOLDER = 'planned'  # in a work dir that has a config, of plans with another --model
DATA_HELP = 'own data instead of a config: a COCO folder or JSON, a YOLO data.yaml, a VOC folder'
TEST_WORKERS = 2


def add_own_data(parser: argparse._ActionsContainer, model: bool = True) -> None:
    """Add ``--data``, ``--image-dir`` and ``--model``."""
    parser.add_argument('--data', metavar='PATH', help=DATA_HELP)
    parser.add_argument(
        '--image-dir', metavar='DIR', help='folder of the pictures of a COCO JSON, if not beside it'
    )
    if model:
        parser.add_argument(
            '--model',
            metavar='NAME',
            help='model to train on --data: a config, a name that gfl-det models lists, or a '
            f'checkpoint of gfl-det weights convert ({DEFAULT_MODEL}; if its weights are not '
            f'available, {SCRATCH_MODEL})',
        )


def one_of(parser: argparse.ArgumentParser, args: argparse.Namespace, name: str) -> None:
    """Refuse a command line with both or neither of a positional argument and ``--data``."""
    given = getattr(args, name)
    shown = next(each.metavar or name for each in parser._actions if each.dest == name)
    if (given is None) == (args.data is None):
        parser.error(
            f'give {shown} or --data PATH'
            if given is None
            else f'give {shown} or --data PATH, not both ({shown} is {given!r})'
        )
    if args.data is None and (args.image_dir or getattr(args, 'model', None)):
        parser.error('--image-dir and --model go with --data PATH')


def work_dir_of(args: argparse.Namespace) -> Path:
    """Return the work dir of a data set: the option's value, else its name in ``work_dirs``."""
    from gfl_det.engine.own_data.plan import name_of

    given = getattr(args, 'work_dir', None)
    return Path(given or os.path.join('work_dirs', name_of(args.data)))


def read_data_set(args: argparse.Namespace, classes: Sequence[str] = ()) -> OwnData:
    """Read ``--data``; splits that are not in COCO files are written into the work dir.

    Args:
        args: Arguments of the command.
        classes: Classes of a detector, in the order to use.

    Raises:
        DataError: If the path is not a data set.
    """
    from gfl_det.datasets.formats.own_data import in_order, read_own, write_parts

    data = in_order(read_own(args.data, args.image_dir), classes)
    data = write_parts(data, work_dir_of(args) / ('judged' if classes else 'data'))
    for note in data.notes:
        print(f'note: {note}', file=sys.stderr)
    return data


def planned_config(args: argparse.Namespace, anew: bool = False) -> str:
    """Return the config of ``--data``: the one in its work dir, else a planned one, written there.

    Args:
        args: Arguments of the command.
        anew: Plan for a training, even if there is a config; an edited config is kept under another
            name.

    Raises:
        ConfigError: If another config has been trained in the work dir, or there are several.
        GFLDetError: If the data or the model cannot be used.
    """
    from gfl_det.utils.config import OWN_CONFIG, config_in, configs_in

    path = work_dir_of(args) / OWN_CONFIG
    found = configs_in(path.parent)
    if found and not anew and not args.model:
        print(f'config: {config_in(path.parent)}', file=sys.stderr)
        return str(config_in(path.parent))
    if found and not anew:  # a plan to look at does not replace the config of a training
        path = path.parent / PLAN_FOLDER / OWN_CONFIG
    elif found and not path.is_file():
        raise ConfigError(
            f'{path.parent} holds the training of {found[0].name}: name another --work-dir.'
        )
    from gfl_det.engine.own_data.config_text import config_text
    from gfl_det.engine.own_data.plan import make_plan, name_of
    from gfl_det.utils.config import load_config
    from gfl_det.utils.files import write_text

    start = choose_start(args.model, path.parent, getattr(args, 'from_scratch', False))
    data = read_data_set(args)
    plan = make_plan(data, start)
    text = config_text(data, plan, name_of(args.data), path.parent)
    print('\n'.join(map(str, plan.settings)))
    if path.is_file() and path.read_text(encoding='utf-8') != text:
        path.replace(path.with_name(KEPT_NAME))
        print(f'kept      {path.with_name(KEPT_NAME)}: the config that was there')
    write_text(path, text)
    print(f'config    {path}: edit it, then gfl-det train {path.parent}', flush=True)
    if start.copied:
        from gfl_det.engine.own_data.start_weights import fit_weights

        fit_weights(load_config(str(path)), Path(str(start.weights)))
    return str(path)


def choose_start(model: str | None, work_dir: Path, scratch: bool) -> StartingPoint:
    """Find the named model, or the default one for the weights that are available.

    Raises:
        GFLDetError: As in :func:`starting_point`.
    """
    if model is not None or scratch:
        return starting_point(model or SCRATCH_MODEL, work_dir, scratch)
    start = starting_point(DEFAULT_MODEL, work_dir)
    if start.weights is not None:
        return start
    return starting_point(SCRATCH_MODEL, work_dir)._replace(reason=start.reason)


def starting_point(model: str, work_dir: Path, scratch: bool = False) -> StartingPoint:
    """Find a model and its published weights.

    Args:
        model: Config, name listed by ``gfl-det models``, or checkpoint written by ``gfl-det weights
            convert``.
        work_dir: Folder for converted weights.
        scratch: Use random weights even if published ones exist.

    Raises:
        ConfigError: If there is no such model.
        CheckpointError: If a checkpoint cannot be read.
    """
    from gfl_det.compat.published import find_published
    from gfl_det.engine.own_data.plan import StartingPoint
    from gfl_det.engine.preflight.agreement import pretrained_parts, unreachable_part
    from gfl_det.utils.config import config_names, load_config, shipped_base

    name, state = _converted(model) if model.endswith(CHECKPOINT_ENDING) else (model, None)
    published = find_published(name.removesuffix('.py'))
    name = name if published is None else _student(published.name)
    cfg = load_config(name)
    base = name if '::' in name else str(Path(name).absolute())
    if name.removesuffix('.py') in config_names():
        base = shipped_base(name.removesuffix('.py'))
    start = StartingPoint(base, model, cfg, scratch=True)
    if scratch:
        return start._replace(reason='from random weights (--from-scratch)')
    if state is not None:
        reason = f'starts from {model}, classes anew'
        copy = _copy(state, work_dir / f'{name}.pth')
        return StartingPoint(base, name, cfg, copy, copied=True, reason=reason)
    if published is not None:
        try:
            weights, copied = _weights(published, work_dir)
            reason = f'starts from {weights}{", classes anew" if copied else ""}'
            return StartingPoint(base, model, cfg, weights, copied=copied, reason=reason)
        except CheckpointError as error:
            sentence = str(error).splitlines()[0].rstrip('.')
            reason = f'from random weights, as {sentence[0].lower()}{sentence[1:]}'
            return start._replace(reason=reason)
    missing = unreachable_part(cfg)
    if missing:
        return start._replace(reason=f'from random weights, as {missing}')
    parts = [init['checkpoint'] for _, init in pretrained_parts(cfg.model)]
    reason = f'starts from {parts[0]}' if parts else 'from random weights'
    return StartingPoint(base, model, cfg, reason=reason)


def _student(name: str) -> str:
    """Return the shipped config of published weights; for a distilled student, the GFL config."""
    from gfl_det.utils.config import config_names

    found = re.match(r'ld_(r\d+)-', name)
    if found is None:
        return name
    plain = re.compile(rf'gfl_{found[1]}_fpn_.*_coco')
    return next((each for each in config_names() if plain.fullmatch(each)), name)


def _converted(path: str) -> tuple[str, Mapping[str, Tensor]]:
    """Return config name and state dict of a checkpoint written by ``weights convert``.

    Raises:
        CheckpointError: If the file cannot be read, or does not name a shipped config.
    """
    from gfl_det.compat.checkpoint import load_file
    from gfl_det.engine.preflight import check_checkpoint
    from gfl_det.utils.config import config_names

    check_checkpoint(path)
    content = load_file(path, 'cpu')
    name = (content.get('meta') or {}).get('config')
    if name not in config_names() or not content.get('state_dict'):
        raise CheckpointError(
            f'{path} does not name its config, as checkpoints of gfl-det weights convert do: give '
            '--model the config, with load_from in it.'
        )
    return name, content['state_dict']


def _weights(published: PublishedModel, work_dir: Path) -> tuple[str, bool]:
    """Fetch weights; also return whether they are a copy, to be adapted to the data."""
    from gfl_det.compat.checkpoint import load_file
    from gfl_det.compat.published import NANODET, fetch
    from gfl_det.engine.preflight.agreement import unreachable
    from gfl_det.inference.foreign_weights import take_authors

    reason = None if published.path.is_file() else unreachable(published.url)
    if reason:
        raise CheckpointError(
            f'The weights {published.url} are not available ({reason}): put that file at '
            f'{published.path} to start from it.'
        )
    path = str(fetch(published).absolute())
    if published.folder != NANODET:
        return path, False
    state = take_authors(load_file(path, 'cpu'), path)[0]
    return _copy(state, work_dir / f'{published.name}.pth'), True


def _copy(state: Mapping[str, Tensor], path: Path) -> str:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=state), path)
    return str(path.absolute())


def judged_config(args: argparse.Namespace, checkpoint: str | None) -> tuple[Config, str]:
    """Return config and checkpoint for the evaluation of a detector on ``--data``.

    Args:
        args: Arguments of the command.
        checkpoint: Checkpoint file, whose stored config is used with the data replaced; None: the
            best checkpoint in the work dir of the data, with the config there.

    Raises:
        GFLDetError: If one of them is missing, or detector and data have no common class.
    """
    from gfl_det.utils.config import load_config

    options = getattr(args, 'cfg_options', None)
    if checkpoint is None:
        from gfl_det.engine.training.checkpoints import best_checkpoint

        work_dir = work_dir_of(args)
        best = str(best_checkpoint(work_dir))
        return load_config(str(work_dir), options), best
    from gfl_det.utils.config import override

    cfg = _stored(checkpoint) if args.model is None else load_config(args.model)
    classes = _classes(cfg, checkpoint)
    _put_data(cfg, read_data_set(args, classes), classes, checkpoint)
    for warning in override(cfg, options or {}):
        print(f'warning: {warning}', file=sys.stderr)
    return cfg, checkpoint


def _stored(checkpoint: str) -> Config:
    from mmengine.config import Config

    from gfl_det.compat.checkpoint import load_file
    from gfl_det.engine.preflight import check_checkpoint
    from gfl_det.inference.stored_config import stored_config
    from gfl_det.utils.config import WHOLE_CONFIG

    check_checkpoint(checkpoint)
    cfg = stored_config(load_file(checkpoint, 'cpu').get('meta') or {}, checkpoint)
    cfg.setdefault('default_scope', 'mmdet')
    # File name under which mmengine writes the complete config into a work dir.
    name = os.path.join(os.path.dirname(checkpoint), WHOLE_CONFIG)
    return Config(cfg.to_dict(), filename=name)


def _classes(cfg: Config, checkpoint: str) -> list[str]:
    """Return the classes of a detector.

    Raises:
        ConfigError: If its config does not list them.
    """
    from gfl_det.engine.preflight.agreement import class_names
    from gfl_det.utils.config import datasets_of

    datasets = datasets_of(cfg, 'test')
    classes = class_names(datasets[0]) if datasets else None
    if not classes or 'pipeline' not in datasets[0]:
        raise ConfigError(f'{checkpoint} does not say its classes: name its config with --model.')
    return classes


def _put_data(cfg: Config, data: OwnData, classes: Sequence[str], checkpoint: str) -> None:
    """Make a config evaluate a detector on the splits of a data set."""
    from gfl_det.utils.config import datasets_of

    pipeline = datasets_of(cfg, 'test')[0]['pipeline']
    unknown = [name for name in data.classes if name not in classes]
    if len(unknown) == len(data.classes):
        raise DataError(
            f'The detector of {checkpoint} was trained for {", ".join(classes[:5])} and knows none '
            f'of the classes of {data.source}: {", ".join(data.classes[:5])}.'
        )
    if unknown:
        print(f'note: the detector does not know {", ".join(unknown)}: left out', file=sys.stderr)
    for split in ('val', 'test'):
        part: DataPart = data.parts.get(split) or data.parts['val']
        dataset = dict(
            type='gfl_det.CocoDataset',
            ann_file=str(part.file),
            data_prefix=dict(img=f'{part.folder}/'),
            metainfo=dict(classes=tuple(classes)),
            test_mode=True,
            pipeline=pipeline,
        )
        cfg[f'{split}_dataloader'] = dict(
            batch_size=1,
            num_workers=TEST_WORKERS,
            persistent_workers=False,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dataset,
        )
        cfg[f'{split}_evaluator'] = dict(
            type='gfl_det.CocoMetric', ann_file=str(part.file), metric='bbox'
        )
        cfg[f'{split}_cfg'] = dict(type=f'{split.title()}Loop')
    hooks = cfg.setdefault('default_hooks', {})
    hooks.setdefault('visualization', dict(type='DetVisualizationHook'))
    cfg.setdefault('visualizer', dict(type='DetLocalVisualizer', name='visualizer'))
