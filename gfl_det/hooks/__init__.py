"""Hooks for mmengine's runner."""

from .assignment_log import AssignmentLogHook
from .channels_last import ChannelsLastHook
from .gamma_schedule import GammaScheduleHook

__all__ = ['AssignmentLogHook', 'ChannelsLastHook', 'GammaScheduleHook']
