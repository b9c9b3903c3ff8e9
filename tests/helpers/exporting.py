"""What the tests of export share: tiny detectors, and shipped configs at small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config

import gfl_det
from gfl_det.calibration import calibrators
from gfl_det.calibration.calibrators import ClassMap, DetectionCalibrator
from gfl_det.calibration.calibrators import Settings as Fit
from gfl_det.calibration.files import save_calibrator
from gfl_det.calibration.maps import Isotonic, Platt, ScoreMap, Temperature
from gfl_det.inference.export import (
    ExportedDetector,
    ExportSettings,
    ExportSource,
    Outputs,
    load_source,
)
from gfl_det.inference.export.onnx_file import build_graph, describe
from projects.benchmark.exports import random_checkpoint

FITTED_ON = calibrators.FitSource('', (), 9)
MAPS = (Platt(0.5, 1.0), Temperature(2.0), Isotonic((0.1, 0.6), (0.2, 0.9)))  # of every kind


def tiny_config(head: str = 'GFLHead', **test_cfg) -> Config:
    """The digits' config with few channels, two levels and three classes."""
    cfg = gfl_det.get_config('gfl_r18_fpn_digits')
    cfg.model.backbone.update(stem_channels=8, base_channels=8, num_stages=3, out_indices=(1, 2))
    cfg.model.backbone.update(strides=(1, 2, 2), dilations=(1, 1, 1))
    cfg.model.neck.update(in_channels=[16, 32], out_channels=16, num_outs=2)
    cfg.model.bbox_head.anchor_generator.strides = [8, 16]
    cfg.model.bbox_head.update(
        type=f'gfl_det.{head}', num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1
    )
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=('a', 'b', 'c'))
    cfg.model.test_cfg.update(test_cfg)
    return cfg


def random_source(cfg: Config, folder: Path, **calibration) -> ExportSource:
    """A config with random weights, loaded for export."""
    return load_source(cfg, 'tiny', random_checkpoint(cfg, folder / 'weights.pth'), **calibration)


def save_maps(folder: Path, maps: Sequence[ScoreMap], head: str = 'GFLHead') -> str:
    """A calibrator's file with a map for each class."""
    classes = tuple(
        ClassMap(name, each, 'fitted', float('nan'), float('nan'), 9)
        for name, each in zip('abc', maps)
    )
    path = folder / f'{head}.json'
    save_calibrator(DetectionCalibrator(Fit(), head, classes, FITTED_ON), path)
    return str(path)


class EagerDetector(ExportedDetector):
    """The graph in torch in the place of an exported file."""

    def __init__(self, source: ExportSource, outputs: Outputs) -> None:
        super().__init__(describe(source, ExportSettings(outputs)))
        self.graph = build_graph(source, outputs)

    @torch.inference_mode()
    def run(self, inputs):
        tensors = self.graph(*map(torch.from_numpy, inputs))
        return {name: t.numpy() for name, t in zip(self.description.outputs, tensors)}
