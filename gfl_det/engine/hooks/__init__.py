"""Hooks for mmengine's runner."""

from gfl_det.engine.amp import ChannelsLastHook
from gfl_det.engine.hooks.checkpoint import CheckpointHook, StopSignalHook
from gfl_det.engine.hooks.console import EpochLinesHook, ProgressHook
from gfl_det.engine.hooks.gamma_schedule import GammaScheduleHook
from gfl_det.engine.hooks.loss_guard import LossGuardHook
from gfl_det.engine.hooks.monitoring import AssignmentLogHook, SamplePicturesHook
from gfl_det.engine.own_data.start_weights import FoldedNormsHook

__all__ = [
    'AssignmentLogHook',
    'ChannelsLastHook',
    'CheckpointHook',
    'EpochLinesHook',
    'FoldedNormsHook',
    'GammaScheduleHook',
    'LossGuardHook',
    'ProgressHook',
    'SamplePicturesHook',
    'StopSignalHook',
]
