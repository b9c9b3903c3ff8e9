"""What the options of the tools do to a config, before anything is built from it."""

from __future__ import annotations

import difflib
import inspect
import os
from copy import deepcopy
from typing import Any

from mmdet.registry import MODELS  # a bare name is mmdet's, as in a runner
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from gfl_det.engine import pictures
from gfl_det.engine.amp import CPUAmpOptimWrapper
from gfl_det.engine.hooks import AssignmentLogHook, ChannelsLastHook
from gfl_det.engine.preflight.weights import pretrained_parts
from gfl_det.engine.training.checkpoints import Choice, choose_checkpoint, newest_checkpoint
from gfl_det.errors import ConfigError
from gfl_det.models.heads import GFLHead
from gfl_det.utils.walk import Node, datasets_of, metrics_of, walk

SPLITS = ('train', 'val', 'test')
PATH_KEYS = ('data_root', 'ann_file')
RUNNER_KEYS = frozenset(inspect.signature(Runner.__init__).parameters)  # may be added to any config
SCRATCH_NOTE = (
    'training from random weights: without ImageNet it takes a schedule several times as long to '
    'reach the same AP (He et al., "Rethinking ImageNet Pre-training", 2019)'
)


def override(cfg: Config, settings: dict[str, Any]) -> list[str]:
    """Merge ``--cfg-options`` into a config; ``data_root`` moves every path below the old root.

    Returns:
        One warning a key that the config does not have: mmengine adds it without a word.

    Raises:
        ConfigError: A value cannot be merged.
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
    """Set ``data_root`` and replace the old one at the head of each path that came from it.

    A config is evaluated when it is read: overriding its variable ``data_root`` afterwards leaves
    ``data_root=data_root`` and ``ann_file=data_root + 'x.json'`` of data sets and metrics as they
    were.

    Raises:
        ConfigError: The config has no ``data_root``, neither at its top nor a common one below it.
    """
    datasets = [dataset for split in SPLITS for dataset in datasets_of(cfg, split)]
    roots = {dataset.get('data_root') for dataset in datasets} - {None, ''}
    old = cfg.get('data_root') or (roots.pop() if len(roots) == 1 else None)
    if old is None:
        raise ConfigError(
            'The config has no single data_root to move: set the one of each data set, as in '
            'train_dataloader.dataset.data_root=...'
        )
    parts = [cfg.get(f'{split}_{part}') for split in SPLITS for part in ('dataloader', 'evaluator')]
    moved = set()  # the splits of a config may share one dict
    for _, node in walk(parts, ''):
        if id(node) in moved:
            continue
        moved.add(id(node))
        for key in PATH_KEYS:
            path = node.get(key)
            if isinstance(path, str) and _is_below(path, old):
                node[key] = os.path.join(new, path[len(old) :].lstrip('/'))
    cfg.data_root = new


def set_work_dir(cfg: Config, given: str | None, config_name: str) -> None:
    """Take the work dir from the option, else from the config, else from the config's name."""
    stem = os.path.splitext(os.path.basename(config_name))[0]
    cfg.work_dir = given or cfg.get('work_dir') or os.path.join('work_dirs', stem)


def use_amp(cfg: Config, has_gpu: bool) -> None:
    """Train in mixed precision: float16 with scaled losses on a GPU, bfloat16 on a processor."""
    if has_gpu:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')
    else:
        cfg.optim_wrapper.type = f'gfl_det.{CPUAmpOptimWrapper.__name__}'


def use_channels_last(cfg: Config) -> None:
    """Lay maps out with channels last."""
    hook = dict(type=f'gfl_det.{ChannelsLastHook.__name__}')
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), hook]


def log_assignment(cfg: Config) -> None:
    """Log clipped edges and truths without a positive, where the model has a GFL head."""
    hook = f'gfl_det.{AssignmentLogHook.__name__}'
    hooks = cfg.get('custom_hooks') or []
    if any(each.get('type') in (hook, AssignmentLogHook) for each in hooks):
        return
    types = [node.get('type') for _, node in walk(cfg.get('model'), 'model')]
    kinds = [MODELS.get(each) if isinstance(each, str) else each for each in types]
    if any(isinstance(kind, type) and issubclass(kind, GFLHead) for kind in kinds):
        cfg.custom_hooks = [*hooks, dict(type=hook)]


def train_from_scratch(cfg: Config) -> None:
    """Drop pretrained weights, and train the layers that would rest on them."""
    for path, _ in list(pretrained_parts(cfg.model)):
        part = _at(cfg, path)
        part['init_cfg'] = None
        for key, trained in (('frozen_stages', -1), ('norm_eval', False)):
            if key in part:
                part[key] = trained


def resume(cfg: Config, checkpoint: str | None) -> list[str]:
    """Go on from a checkpoint, or with ``auto`` from the newest good one in the work dir if any.

    What a checkpoint will overwrite is not fetched first.

    Returns:
        Lines that say what is gone on from, and which damaged files were passed over.

    Raises:
        CheckpointError: The checkpoint is missing or damaged, or all in the work dir are.
    """
    if checkpoint is None:
        return []
    if '://' in checkpoint:
        cfg.load_from = checkpoint
        lines = [f'resuming from {checkpoint}']
    else:
        choice = (
            newest_checkpoint(cfg.work_dir)
            if checkpoint == 'auto'
            else Choice(choose_checkpoint(checkpoint, cfg.work_dir), [])
        )
        lines = [f'passed over {each.path}: {each.fault}' for each in choice.passed_over]
        if choice.found is None:
            cfg.resume, cfg.load_from = False, cfg.get('load_from')
            return [*lines, f'no checkpoint in {cfg.work_dir} to resume from: a new training']
        found = choice.found
        cfg.load_from = str(found.path)
        lines.append(
            f'resuming from {found.path}: epoch {found.epoch}, iteration {found.iteration}'
        )
    cfg.resume = True
    for path, _ in list(pretrained_parts(cfg.model)):
        _at(cfg, path)['init_cfg'] = None
    return lines


def draw_into(cfg: Config, folder: str) -> None:
    """Draw every tested image into exactly this folder.

    Raises:
        ConfigError: The config has no hook that draws.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ConfigError(
            "--show-dir needs default_hooks=dict(visualization=dict(type='DetVisualizationHook'))."
        )
    # mmdet nests a relative folder in work_dir/timestamp, again with each image.
    hook.update(draw=True, test_out_dir=os.path.abspath(folder))
    pictures.draw_softly(cfg)


def write_results(cfg: Config, out: str) -> None:
    """Write detections to ``out``: pickled samples (.pkl) or COCO's result format (.json).

    Raises:
        ConfigError: The ending is another, or .json is asked for without a COCO metric.
    """
    metrics = metrics_of(cfg, 'test')
    stem, ending = os.path.splitext(out)
    if ending in ('.pkl', '.pickle'):
        cfg.test_evaluator = [*metrics, dict(type='DumpDetResults', out_file_path=out)]
        return
    if ending != '.json':
        raise ConfigError(f'--out {out} must end in .pkl (samples) or .json (COCO results).')
    coco = [metric for metric in metrics if str(metric['type']).endswith('CocoMetric')]
    if not coco:
        raise ConfigError('--out with .json needs a CocoMetric as test_evaluator; use .pkl.')
    coco[0]['outfile_prefix'] = stem


def settle_results(out: str) -> None:
    """Give the file that mmdet's COCO metric wrote the name that was asked for."""
    stem, ending = os.path.splitext(out)
    written = f'{stem}.bbox.json'
    if ending == '.json' and os.path.isfile(written):
        os.replace(written, out)


def list_classes_apart(cfg: Config) -> None:
    """Let COCO metrics print the AP of each class too."""
    for metric in metrics_of(cfg, 'test'):
        if str(metric['type']).endswith('CocoMetric'):
            metric['classwise'] = True


def use_test_time_augmentation(cfg: Config) -> None:
    """Average predictions over ``tta_pipeline``, or over the image and its mirror without one."""
    tta_cfg = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    model = cfg.get('tta_model') or dict(type='DetTTAModel', tta_cfg=tta_cfg)
    for dataset in datasets_of(cfg, 'test'):
        dataset['pipeline'] = cfg.get('tta_pipeline') or _mirror_pipeline(dataset['pipeline'])
    cfg.model = ConfigDict(**model, module=cfg.model)


def _mirror_pipeline(pipeline: list[Node]) -> list[Node]:
    *steps, pack = deepcopy(pipeline)
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pack['meta_keys'] = (*keys, 'flip', 'flip_direction')
    mirror = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    return [*steps, dict(type='TestTimeAug', transforms=[mirror, [pack]])]


def _paths(value: Any, path: str) -> list[str]:
    """List the dotted paths of all values, those inside lists too."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        return [path]
    return [path, *(below for key, item in items for below in _paths(item, f'{path}.{key}'))]


def _at(cfg: Config, path: str) -> Node:
    node: Any = cfg
    for key in path.split('.'):
        node = node[int(key)] if isinstance(node, (list, tuple)) else node[key]
    return node


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip('/') + '/')
