"""Runners built from a config, and the detections of a split that a calibrator is fitted on."""

from __future__ import annotations

import io
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from copy import deepcopy
from datetime import timedelta
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from mmdet.registry import RUNNERS
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from gfl_det.calibration.apply import edge_detections
from gfl_det.calibration.distribution import EdgeDetections
from gfl_det.calibration.splits import Judged
from gfl_det.datasets.table import CocoTable
from gfl_det.engine import preflight
from gfl_det.engine.hooks.console import EpochLinesHook, ProgressHook, for_people, has_terminal
from gfl_det.engine.preflight.agreement import class_names
from gfl_det.errors import ConfigError, SetupError
from gfl_det.evaluation.detections import (
    GroundTruth,
    detections_from_coco,
    gts_of_table,
    read_annotations,
    read_json,
)
from gfl_det.evaluation.shown import Sample, match_samples, once
from gfl_det.utils.config import WHOLE_CONFIG, annotation_path, datasets_of, metrics_of, walk

# What mmengine says of unknown types, of wrong arguments, and of a loop that lacks a part.
BUILD_FAULT = re.compile(
    r'.* is not in the \S+ registry|class `\w+` in \S+: .*argument|.* either all None or not None'
)
Split = Literal['val', 'test']
Quiet = Literal['train', 'test']
Check = Callable[[GroundTruth], None]


class QuietRunner(Runner):
    """mmengine's runner whose console has what a person can act on; its log file has all."""

    tables = False  # whether the console has tables too

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(partial(for_people, tables=self.tables))
        return logger


class QuietTestRunner(QuietRunner):
    """The same for a test, whose tables are for people."""

    tables = True


def build_runner(cfg: Config, launcher: str = 'none', quiet: Quiet | None = None) -> Runner:
    """Build the runner of a config.

    Args:
        cfg: The config, complete.
        launcher: What started the processes: ``none``, ``pytorch``, ``slurm`` or ``mpi``.
        quiet: What is done, where the console is to have no more than a person can act on. A
            training by iterations, and one by a strategy, tells all of it in any case.

    Raises:
        ConfigError: If a part has an unknown type, or an argument that its type does not take.
        SetupError: If the launcher is ``pytorch`` without torchrun.
    """
    cfg.launcher = launcher
    if launcher == 'pytorch':
        _join_processes(cfg)
    _keep_config(cfg)
    kind = _runner_type(cfg, quiet)
    if has_terminal():
        hook = f'gfl_det.{ProgressHook.__name__}'
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type=hook)]
    setup_cache_size_limit_of_dynamo()  # shapes of pictures vary: compile anew less often
    try:
        return RUNNERS.build(cfg) if 'runner_type' in cfg else kind.from_cfg(cfg)
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error.args[0]) if error.args else ''
        if not BUILD_FAULT.match(reason):
            raise
        raise ConfigError(
            f'{cfg.filename or "The config"} cannot be built: {reason.partition(". ")[0]}.'
        ) from error


def _runner_type(cfg: Config, quiet: Quiet | None) -> type[Runner]:
    if quiet == 'test':
        return QuietTestRunner
    loop = cfg.get('train_cfg') or {}
    if quiet is None or 'max_epochs' not in loop or 'runner_type' in cfg:
        return Runner
    hook = f'gfl_det.{EpochLinesHook.__name__}'
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type=hook)]
    return QuietRunner


def _keep_config(cfg: Config) -> None:
    """Let mmengine write the whole config beside one that lies in the work dir, and not over it."""
    folder = os.path.realpath(cfg.get('work_dir') or '.')
    if cfg.filename and os.path.realpath(os.path.dirname(cfg.filename)) == folder:
        object.__setattr__(cfg, '_filename', os.path.join(cfg.work_dir, WHOLE_CONFIG))


def _join_processes(cfg: Config) -> None:
    """Join torchrun's processes where mmengine would not: it takes for granted that each has a GPU.

    Without GPUs gloo connects them, and the wrapped model must not name a device.
    """
    if 'RANK' not in os.environ:
        raise SetupError(
            '--launcher pytorch needs the variables that torchrun sets: start with '
            '`torchrun --nproc_per_node GPUS -m gfl_det train CONFIG --launcher pytorch`.'
        )
    if get_device() != 'cpu':
        return
    if not torch.distributed.is_initialized():
        # mmengine's key, in seconds: how long to wait for a process that does not answer.
        seconds = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout')
        patience = timedelta(seconds=seconds) if seconds else None
        store, rank, count = next(torch.distributed.rendezvous('env://'))
        if os.environ.get('LOCAL_WORLD_SIZE') == os.environ['WORLD_SIZE']:
            # Processes that torchrun starts again on one machine get the store of those before, and
            # would connect to the addresses of the dead.
            attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
            store = torch.distributed.PrefixStore(f'attempt {attempt}', store)
        torch.distributed.init_process_group(
            'gloo', store=store, rank=rank, world_size=count, timeout=patience
        )
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )


def detect_split(cfg: Config, checkpoint: str, split: Split, check: Check | None = None) -> Judged:
    """Run a detector over a split; its scores are raw, whatever calibrator the config names.

    Args:
        cfg: Config of the detector; not changed.
        checkpoint: a file or an address.
        split: the data of ``val_dataloader`` or of ``test_dataloader``.
        check: called with the ground truth before the detector runs; raises where it is of no use.

    Returns:
        Ground truth and detections, classes in the order of the detector's labels.

    Raises:
        GFLDetError: If the checkpoint or the data are missing, or the config lacks the split.
    """
    found = run_split(cfg, checkpoint, split, check)
    what = f'detections of {checkpoint}'
    return Judged(found.gts, detections_from_coco(found.results, found.gts, what))


def detect_edges(
    cfg: Config, checkpoint: str, split: Split, check: Check | None = None
) -> tuple[GroundTruth, EdgeDetections]:
    """The same of a GFL head, with the distributions that its edges were read from.

    Raises:
        GFLDetError: As for :func:`detect_split`, or if the head gives no distributions.
    """
    cfg = deepcopy(cfg)
    cfg.model.setdefault('test_cfg', {})['with_distribution'] = True
    gts, _, samples, _ = run_split(cfg, checkpoint, split, check)
    found = [sample.pred_instances for sample in samples]
    if not all('edge_logits' in each for each in found):
        raise ConfigError(
            f"{cfg.filename}: the head {score_type(cfg)} keeps no distributions: take gfl_det's "
            'GFLHead, or a method that reads scores alone.'
        )
    place = {image_id: index for index, image_id in enumerate(gts.image_ids)}
    return gts, edge_detections(found, [place[sample.img_id] for sample in samples])


class _Keep(Hook):
    """Keeps what a test loop finds, and how long it takes per image."""

    def __init__(self) -> None:
        self.samples: list[Any] = []
        self.seconds: list[float] = []
        self.batch = 0
        self._begin = 0.0

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._begin = time.perf_counter()

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        samples = [sample.cpu() for sample in outputs or ()]  # waits for a GPU
        self.seconds.append((time.perf_counter() - self._begin) / max(len(samples), 1))
        self.batch = max(self.batch, len(samples))
        self.samples += samples

    def facts(self, model: torch.nn.Module) -> ModelFacts:
        """Describe the model that was run."""
        device = next(model.parameters()).device
        name = torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type
        threads = torch.get_num_threads()
        if device.type == 'cpu':
            name += f', {threads} thread' + 's' * (threads > 1)
        after_first = self.seconds[1:] or self.seconds  # which allocates and warms up
        milliseconds = 1000 * float(np.median(after_first)) if after_first else float('nan')
        parameters = sum(each.numel() for each in model.parameters())
        return ModelFacts(parameters, milliseconds, self.batch, name)


class ModelFacts(NamedTuple):
    """Size and speed of a model that was run over a split."""

    parameters: int
    milliseconds: float  # per image, median of the batches: all but reading the image
    batch: int  # images
    device: str


class SplitRun(NamedTuple):
    """What a detector found on a split."""

    gts: GroundTruth
    results: Any  # of COCO
    samples: list[Any]  # that the results were written from
    model: ModelFacts


def run_split(cfg: Config, checkpoint: str, split: Split, check: Check | None = None) -> SplitRun:
    """Run a detector over a split.

    Arguments and errors are those of :func:`detect_split`.
    """
    cfg, keep = deepcopy(cfg), _Keep()
    path = annotations_path(cfg, split)
    cfg.test_dataloader = cfg[f'{split}_dataloader']
    cfg.test_cfg = cfg.get('test_cfg') or dict(type='TestLoop')
    cfg.load_from = checkpoint
    for _, node in walk(cfg.model, 'model'):
        for name in ('calibrator', 'operating_point'):
            if isinstance(node.get(name), str):
                del node[name]
    with TemporaryDirectory() as folder:
        prefix = os.path.join(folder, 'found')
        cfg.work_dir = folder
        cfg.log_level = 'WARNING'  # tools print tables where a training prints its log
        # mmengine keeps logs and visualizers by name: a second run here needs others.
        cfg.experiment_name = os.path.basename(folder)
        cfg.visualizer = dict(type='DetLocalVisualizer', vis_backends=[])
        cfg.test_evaluator = dict(
            type='gfl_det.CocoMetric',
            ann_file=path,
            metric='bbox',
            format_only=True,
            outfile_prefix=prefix,
        )
        preflight.check_testing(cfg)
        gts = _gts(cfg, path)
        if check is not None:
            check(gts)
        runner = build_runner(cfg)
        runner.register_hook(keep)
        with redirect_stdout(io.StringIO()):  # pycocotools tells of each step
            _ = runner.test_loop  # reads the annotations
        runner.test()
        for handler in list(runner.logger.handlers):  # whose folder is about to go
            if isinstance(handler, logging.FileHandler):
                runner.logger.removeHandler(handler)
                handler.close()
        results = read_json(f'{prefix}.bbox.json')
        rows = _label(keep.samples, read_annotations(path))
    place = {each: index for index, each in enumerate(gts.image_ids)}
    chosen = sorted(place[image_id] for image_id in rows)
    return SplitRun(gts.of_images(chosen), results, keep.samples, keep.facts(runner.model))


def _label(samples: list[Any], table: CocoTable) -> list[Any]:
    """Give samples the image ids of the annotation file, each image once; return the ids."""
    shown = [Sample(each.img_id, str(each.get('img_path') or '')) for each in samples]
    rows = match_samples(shown, table.image_ids, table.file_names, 'CocoMetric')
    ids = [table.image_ids[row] for row in rows]
    for sample, image_id in zip(samples, ids):
        sample.set_metainfo(dict(img_id=image_id))
    samples[:] = [samples[place] for place in once(shown, rows)]
    return list(dict.fromkeys(ids))


def _gts(cfg: Config, path: str) -> GroundTruth:
    gts = gts_of_table(read_annotations(path))
    names = class_names(datasets_of(cfg, 'test')[0])
    return gts if names is None else gts.of_classes(names, path)


def annotations_path(cfg: Config, split: Split) -> str:
    """The annotation file of a split: that of its metric, else that of its only data set.

    Raises:
        ConfigError: If the config lacks the split, or names no annotation file for it.
    """
    datasets = datasets_of(cfg, split)
    if not datasets:
        raise ConfigError(f'{cfg.filename} has no {split}_dataloader: add one, or take the other.')
    paths = [metric['ann_file'] for metric in metrics_of(cfg, split) if metric.get('ann_file')]
    if not paths and len(datasets) == 1:
        paths = [path for path in [annotation_path(datasets[0])] if path]
    if not paths:
        raise ConfigError(
            f'{cfg.filename} names no COCO annotation file for its {split} split: set ann_file of '
            f'{split}_evaluator.'
        )
    return str(paths[0])


def score_type(cfg: Config) -> str:
    """Whose scores a detector gives: the name of its head, without the registry's prefix."""
    head = cfg.model.get('bbox_head') or cfg.model
    return str(head['type']).rpartition('.')[2]
