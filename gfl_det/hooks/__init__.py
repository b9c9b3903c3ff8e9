"""Hooks for mmengine's runner."""

from .assignment_log import AssignmentLogHook
from .channels_last import ChannelsLastHook
from .checkpoint import CheckpointHook
from .gamma_schedule import GammaScheduleHook
from .loss_guard import LossGuardHook
from .progress import ProgressHook
from .sample_pictures import SamplePicturesHook
from .stop_signal import StopSignalHook

__all__ = [
    'AssignmentLogHook',
    'ChannelsLastHook',
    'CheckpointHook',
    'GammaScheduleHook',
    'LossGuardHook',
    'ProgressHook',
    'SamplePicturesHook',
    'StopSignalHook',
]
