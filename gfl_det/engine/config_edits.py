"""Edits that the options of the tools make to a config, before anything is built from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

from mmdet.registry import MODELS  # a bare name is mmdet's, as in a runner
from mmengine.config import Config, ConfigDict

from gfl_det.compat.environment import require_bfloat16
from gfl_det.engine.amp import CPUAmpOptimWrapper
from gfl_det.engine.hooks import (
    AssignmentLogHook,
    ChannelsLastHook,
    CheckpointHook,
    FoldedNormsHook,
    LossGuardHook,
    StopSignalHook,
)
from gfl_det.engine.preflight.agreement import pretrained_parts
from gfl_det.engine.training.checkpoints import Choice, choose_checkpoint, newest_checkpoint
from gfl_det.engine.training.loop import EpochTrainLoop
from gfl_det.errors import ConfigError, SetupError
from gfl_det.models.heads import GFLHead
from gfl_det.utils.choices import BACKENDS
from gfl_det.utils.config import Node, datasets_of, metrics_of, walk

SCRATCH_NOTE = (
    'training from random weights: without ImageNet it takes a schedule several times as long to '
    'reach the same AP (He et al., "Rethinking ImageNet Pre-training", 2019)'
)
RESAMPLED = ('CocoMetric', 'CalibrationMetric')  # metrics that give intervals
# The variable that holds the number of processes, by launcher.
PROCESS_COUNTS = {
    'pytorch': 'WORLD_SIZE',
    'slurm': 'SLURM_NTASKS',
    'mpi': 'OMPI_COMM_WORLD_SIZE',
}
# Heads whose results hold distributions on request.
HEADS = ('gfl_det.GFLHead', 'gfl_det.GFLv2Head', 'gfl_det.LDHead')


def set_work_dir(cfg: Config, given: str | None, config_name: str) -> None:
    """Take the work dir from the option, else from the config, else from the config's name."""
    stem = os.path.splitext(os.path.basename(config_name))[0]
    folder = config_name if os.path.isdir(config_name) else None
    cfg.work_dir = given or folder or cfg.get('work_dir') or os.path.join('work_dirs', stem)


def use_amp(cfg: Config, has_gpu: bool) -> None:
    """Train in mixed precision: float16 with scaled losses on a GPU, bfloat16 on a processor.

    Raises:
        SetupError: If the processor does not compute in bfloat16.
    """
    if has_gpu:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')
    else:
        require_bfloat16('Training with --amp', 'train in float32, without --amp')
        cfg.optim_wrapper.type = f'gfl_det.{CPUAmpOptimWrapper.__name__}'


def use_channels_last(cfg: Config) -> None:
    """Lay maps out with channels last."""
    hook = dict(type=f'gfl_det.{ChannelsLastHook.__name__}')
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), hook]


def log_assignment(cfg: Config) -> None:
    """Log clipped edges and gt boxes without a positive, where the model has a GFL head."""
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
    cfg.load_from = None
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
        CheckpointError: If the checkpoint is missing or damaged, or all in the work dir are.
    """
    if checkpoint is None:
        if not cfg.get('resume'):
            return []
        checkpoint = cfg.get('load_from') or 'auto'  # as mmengine means a config's own resume
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


def protect(cfg: Config, guard: str = 'stop') -> None:
    """Put our loop, checkpoints, loss guard and stop signal in the place of mmengine's, or beside.

    What a config names otherwise is left as it is, and so is a config for a strategy such as FSDP.

    Args:
        cfg: The config.
        guard: ``stop`` or ``skip`` for a bad step, ``off`` for no guard.
    """
    if cfg.get('runner_type') == 'FlexibleRunner':
        return  # strategies write their own checkpoints, and no process has all of the weights
    loop = cfg.get('train_cfg') or {}
    by_epoch = loop.get('type') is None and loop.get('by_epoch', True)
    if loop.get('type') == 'EpochBasedTrainLoop' or ('max_epochs' in loop and by_epoch):
        loop.pop('by_epoch', None)
        loop['type'] = f'gfl_det.{EpochTrainLoop.__name__}'
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    saver = cfg.default_hooks.setdefault('checkpoint', dict(interval=1))
    if isinstance(saver, dict) and saver.get('type', 'CheckpointHook') == 'CheckpointHook':
        saver['type'] = f'gfl_det.{CheckpointHook.__name__}'
    _add_hook(cfg, dict(type=f'gfl_det.{StopSignalHook.__name__}'))
    _add_hook(cfg, dict(type=f'gfl_det.{FoldedNormsHook.__name__}'))
    if guard != 'off':
        _add_hook(cfg, dict(type=f'gfl_det.{LossGuardHook.__name__}', policy=guard))


def scale_learning_rate(cfg: Config, launcher: str = 'none', wanted: bool = True) -> str:
    """Scale the learning rate by the real batch over the one it was set for, and say so.

    The real batch is the images that one update sees: of all processes, and of all steps whose
    gradients are accumulated (which mmengine leaves out).

    Args:
        cfg: The config; ``auto_scale_lr`` is set.
        launcher: What started the processes.
        wanted: False leaves the rate as it is.

    Returns:
        One line.
    """
    rate, settings = _rate(cfg), cfg.get('auto_scale_lr') or {}
    base = settings.get('base_batch_size')
    cfg.auto_scale_lr = dict(settings, enable=bool(wanted and base))
    if not wanted:
        return f'learning rate {rate:g}, as in the config (--no-scale-lr)'
    if not base:
        return (
            f'learning rate {rate:g}, as in the config, which does not say for what batch size '
            '(auto_scale_lr.base_batch_size)'
        )
    images = _batch_size(cfg)
    processes = int(os.environ.get(PROCESS_COUNTS.get(launcher, ''), 1))
    steps = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    batch = images * processes * steps
    if steps > 1:
        cfg.auto_scale_lr['base_batch_size'] = base / steps
    counts = [f'{images} images']
    counts += [f'{processes} processes'] if processes > 1 else []
    counts += [f'{steps} steps'] if steps > 1 else []
    resumed = '; a checkpoint that is resumed from keeps its own' if cfg.get('resume') else ''
    return (
        f'learning rate {rate:g} x {batch}/{base} = {rate * batch / base:g} for batches of '
        f'{" x ".join(counts)}, set for {base} (--no-scale-lr keeps {rate:g}){resumed}'
    )


def _add_hook(cfg: Config, hook: Node) -> None:
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(isinstance(each, dict) and each.get('type') == hook['type'] for each in hooks):
        cfg.custom_hooks = [*hooks, hook]


def _rate(cfg: Config) -> float:
    optimizer: Any = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    rate = optimizer.get('lr')
    if not isinstance(rate, (int, float)):
        raise ConfigError(
            'The config has no optim_wrapper.optimizer.lr: set a learning rate.'
            if rate is None
            else f'optim_wrapper.optimizer.lr is {rate!r}: set a number.'
        )
    return float(rate)


def _batch_size(cfg: Config) -> int:
    loader = cfg.train_dataloader
    size = loader.get('batch_size', (loader.get('batch_sampler') or {}).get('batch_size'))
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f'train_dataloader.batch_size is {size}: give a number of images from 1.')
    return size


def draw_softly(cfg: Config) -> None:
    """Draw with ``GFLVisualizer`` in the place of mmdet's, and keep the edges' distributions.

    A visualiser of the user's own stays.
    """
    visualizer = cfg.get('visualizer')
    if visualizer is None:
        cfg.visualizer = dict(type='gfl_det.GFLVisualizer', name='visualizer')
    elif str(visualizer.type).rpartition('.')[2] == 'DetLocalVisualizer':
        visualizer.type = 'gfl_det.GFLVisualizer'
    if cfg.model.get('bbox_head', {}).get('type') in HEADS:
        cfg.model.test_cfg = ConfigDict({**(cfg.model.get('test_cfg') or {})})
        cfg.model.test_cfg.with_distribution = True


def draw_sample(cfg: Config, number: int) -> None:
    """Draw the same validation images after each validation.

    Raises:
        ConfigError: If the config validates nothing, or the number is not positive.
    """
    if number < 1:
        raise ConfigError(f'--pictures {number}: give the number of images to draw, at least 1.')
    if cfg.get('val_dataloader') is None:
        raise ConfigError('--pictures draws validation images: the config has no val_dataloader.')
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    given: dict[str, Any] = hooks.get('visualization') or {}
    kept = {key: given[key] for key in ('score_thr', 'backend_args') if key in given}
    hooks['visualization'] = ConfigDict(
        type='gfl_det.SamplePicturesHook', num_images=number, **kept
    )
    draw_softly(cfg)


def log_to(cfg: Config, names: Sequence[str]) -> None:
    """Send losses, metrics and pictures to TensorBoard or W&B as well.

    Raises:
        SetupError: If the package is not installed.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise SetupError(
            f'--log-to {missing[0]} needs the package {missing[0]}: '
            f'pip install "gfl_det[{missing[0]}]".'
        )
    visualizer = cfg.setdefault(
        'visualizer', ConfigDict(type='gfl_det.GFLVisualizer', name='visualizer')
    )
    # The config's variable vis_backends is often this very list.
    backends = [dict(backend) for backend in visualizer.get('vis_backends') or []]
    have = {backend['type'] for backend in backends}
    wanted = [BACKENDS[name] for name in dict.fromkeys(names)]
    backends += [dict(type=kind) for kind in wanted if kind not in have]
    visualizer.vis_backends = backends


def draw_into(cfg: Config, folder: str) -> None:
    """Draw every tested image into exactly this folder.

    Raises:
        ConfigError: If the config has no hook that draws.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ConfigError(
            "--show-dir needs default_hooks=dict(visualization=dict(type='DetVisualizationHook'))."
        )
    # mmdet nests a relative folder in work_dir/timestamp, again with each image.
    hook.update(draw=True, test_out_dir=os.path.abspath(folder))
    draw_softly(cfg)


def write_results(cfg: Config, out: str) -> None:
    """Write detections to ``out``: pickled samples (.pkl) or COCO's result format (.json).

    Raises:
        ConfigError: If the ending is another, or .json is asked for without a COCO metric.
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


def resample_metrics(cfg: Config, resamples: int) -> None:
    """Let metrics of boxes and of calibration give intervals; mmdet's ``CocoMetric`` becomes ours.

    Raises:
        ConfigError: If the config has no metric that does.
    """
    known = [each for each in metrics_of(cfg, 'test') if str(each['type']).endswith(RESAMPLED)]
    if not known:
        raise ConfigError(
            f'--resamples {resamples}: {cfg.filename} has no CocoMetric and no CalibrationMetric '
            'in its test_evaluator: add one, or leave the option out.'
        )
    for metric in known:
        metric['type'] = f'gfl_det.{str(metric["type"]).rpartition(".")[2]}'
        metric['resamples'] = resamples


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


def _at(cfg: Config, path: str) -> Node:
    node: Any = cfg
    for key in path.split('.'):
        node = node[int(key)] if isinstance(node, (list, tuple)) else node[key]
    return node
