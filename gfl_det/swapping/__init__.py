"""Put a GFL head into the config of another detector: one call, one report of every change."""

from .report import Change
from .swap import Swap, swap_head

__all__ = ['Change', 'Swap', 'swap_head']
