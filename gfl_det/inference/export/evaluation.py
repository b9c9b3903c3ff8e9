"""AP of a detector outside mmengine's runner, and times of exported files against eager mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, METRICS
from mmengine.structures import InstanceData

from gfl_det.engine.preflight.data import check_data
from gfl_det.engine.run_split import Split, truths_path
from gfl_det.errors import ConfigError
from gfl_det.inference.export.parity import noise_pictures, predict
from gfl_det.inference.export.preprocessing import PreparedBatch
from gfl_det.inference.export.runtime import ExportedDetector
from gfl_det.inference.export.source import ExportSource
from gfl_det.inference.optimize import optimize_for_inference
from gfl_det.utils.config import Node, datasets_of, metrics_of
from gfl_det.utils.console import Progress
from gfl_det.utils.timing import Runs

EAGER, OPTIMISED = 'torch, eager', 'torch, optimize_for_inference'


def picture_paths(cfg: Config, split: str) -> list[tuple[int, str]]:
    """Ids and paths of the pictures of a split, ``train``, ``val`` or ``test``, each once.

    Data sets in wrappers that repeat or join them are read one after another; what several of them
    hold comes where it comes first.

    Raises:
        ConfigError: the config has no such split.
        DataError: its annotations cannot be read.
    """
    nodes = datasets_of(cfg, split)
    if not nodes:
        raise ConfigError(f'The config has no {split}_dataloader to take pictures from.')
    pictures = []
    for node in nodes:
        dataset = DATASETS.build({**copy.deepcopy(node), 'pipeline': []})
        infos = (dataset.get_data_info(index) for index in range(len(dataset)))
        pictures += [(info['img_id'], info['img_path']) for info in infos]
    return list(dict.fromkeys(pictures))


def coco_metrics(cfg: Config, split: Split) -> list[Node]:
    """The metrics of a split that need detections alone, with their annotation file.

    Raises:
        ConfigError: there is none.
    """
    found = [each for each in metrics_of(cfg, split) if str(each['type']).endswith('CocoMetric')]
    if not found:
        raise ConfigError(
            f'The config has no CocoMetric as {split}_evaluator to count AP with: add one, or '
            'leave --ap out.'
        )
    return [dict(each, ann_file=each.get('ann_file') or truths_path(cfg, split)) for each in found]


def check_judged(cfg: Config, split: Split) -> None:
    """Refuse a split that :func:`average_precision` could not be counted on.

    Raises:
        GFLDetError: it lacks pictures, files or a COCO metric.
    """
    check_data(cfg, (split,))
    if not picture_paths(cfg, split):
        raise ConfigError(f'The {split} split has no pictures: name another for --ap.')
    coco_metrics(cfg, split)


def average_precision(
    detect: Callable[[str], InstanceData], classes: Sequence[str], cfg: Config, split: Split
) -> dict[str, float]:
    """The numbers of the COCO metrics of a split, such as ``coco/bbox_mAP``.

    Args:
        detect: from the path of a picture to ``bboxes``, ``scores`` and ``labels``.
        classes: names in the order of the labels.
        cfg: the config, with its data in place.
        split: ``val`` or ``test``.

    Raises:
        GFLDetError: see :func:`picture_paths` and :func:`coco_metrics`.
    """
    pictures = picture_paths(cfg, split)
    with _quiet():
        metrics = [METRICS.build(copy.deepcopy(each)) for each in coco_metrics(cfg, split)]
    for metric in metrics:
        metric.dataset_meta = dict(classes=tuple(classes))
    with Progress(len(pictures), 'images') as bar:
        for img_id, path in pictures:
            found = detect(path)
            instances = {name: found[name] for name in ('bboxes', 'scores', 'labels')}
            sample = dict(img_id=img_id, ori_shape=(0, 0), pred_instances=instances)
            for metric in metrics:
                metric.process({}, [sample])
            bar.advance()
    with _quiet():
        found_by = [metric.evaluate(len(pictures)) for metric in metrics]
    return {name: value for values in found_by for name, value in values.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back pycocotools' own table and mmengine's log of the same numbers."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)


def counterpart(cfg: Config, model: BaseDetector) -> tuple[str, BaseDetector]:
    """The detector that time is measured against, and its name.

    That of mmdet with the same weights; for a head that mmdet lacks, ours in eager mode.
    """
    theirs = copy.deepcopy(cfg.model)
    head = theirs.bbox_head
    for part in (head, head.loss_cls, head.loss_dfl, theirs.train_cfg.assigner):
        part.type = part.type.removeprefix('gfl_det.')
    if head.type != 'GFLHead':
        return f'gfl_det, {EAGER}', model
    theirs.backbone.init_cfg = None
    head._scope_ = 'mmdet'
    built = MODELS.build(theirs).eval()
    built.load_state_dict(model.state_dict(), strict=True)
    return f'mmdet, {EAGER}', built


def time_in_turns(
    source: ExportSource,
    cfg: Config,
    detectors: Mapping[str, ExportedDetector],
    size: tuple[int, int],
) -> dict[str, float]:
    """Median milliseconds from a normalised picture to detections.

    Args:
        source: what was exported.
        cfg: its config.
        detectors: the exported files by the names of their rows.
        size: height and width of the network's input, px, multiples of its divisor.

    Returns:
        By name; the first is what to compare with.
    """
    picture = noise_pictures([size])[0]
    (description, *_) = (each.description for each in detectors.values())
    prepared = description.preprocessing.plain(picture)
    name, eager = counterpart(cfg, source.model)
    functions: dict[str, Any] = {
        name: lambda: predict(eager, prepared),
        f'gfl_det, {OPTIMISED}': _prediction(optimize_for_inference(source.model), prepared),
    }
    for key, detector in detectors.items():
        functions[key] = _exported(detector, prepared)
    medians = Runs(repeats=15, seconds=90).in_turns(*functions.values())
    return dict(zip(functions, medians))


def _prediction(model: BaseDetector, prepared: PreparedBatch) -> Any:
    return lambda: predict(model, prepared)


def _exported(detector: ExportedDetector, prepared: PreparedBatch) -> Any:
    return lambda: detector.finish(detector.run(prepared))
