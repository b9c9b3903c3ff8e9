"""GFL heads for the configs of other detectors, with a report of every change."""

from gfl_det.swap.head_config import Change
from gfl_det.swap.swap import Swap, swap_head

__all__ = ['Change', 'Swap', 'swap_head']
