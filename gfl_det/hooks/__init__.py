"""Hooks for mmengine's runner."""

from .channels_last import ChannelsLastHook
from .gamma_schedule import GammaScheduleHook

__all__ = ['ChannelsLastHook', 'GammaScheduleHook']
