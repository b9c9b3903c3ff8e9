"""Exported files against mmdet's own detector in eager mode, on the same inputs, in turns."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config

from gfl_det.inference.export.parity import noise_pictures, predict
from gfl_det.inference.export.preprocessing import PreparedBatch
from gfl_det.inference.export.runtime import ExportedDetector
from gfl_det.inference.export.source import ExportSource
from gfl_det.inference.optimize import optimize_for_inference
from gfl_det.utils.timing import Runs

EAGER, OPTIMISED = 'torch, eager', 'torch, optimize_for_inference'


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
