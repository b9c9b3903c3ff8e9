"""GFL heads in the configs of other detectors: one call, one report of every change."""

from gfl_det.swap.head_config import Change
from gfl_det.swap.swap import Swap, swap_head

__all__ = ['Change', 'Swap', 'swap_head']
