"""Hooks for mmengine's runner."""

from .assignment_log import AssignmentLogHook
from .channels_last import ChannelsLastHook
from .gamma_schedule import GammaScheduleHook
from .sample_pictures import SamplePicturesHook

__all__ = ['AssignmentLogHook', 'ChannelsLastHook', 'GammaScheduleHook', 'SamplePicturesHook']
