"""Hooks for mmengine's runner."""

from .channels_last import ChannelsLastHook
from .checkpoint import CheckpointHook
from .loss_guard import LossGuardHook
from .stop_signal import StopSignalHook

__all__ = ['ChannelsLastHook', 'CheckpointHook', 'LossGuardHook', 'StopSignalHook']
