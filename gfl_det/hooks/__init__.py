"""Hooks for mmengine's runner."""

from .channels_last import ChannelsLastHook
from .gamma_schedule import GammaScheduleHook
from .sample_pictures import SamplePicturesHook

__all__ = ['ChannelsLastHook', 'GammaScheduleHook', 'SamplePicturesHook']
