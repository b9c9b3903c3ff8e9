"""Detection heads."""

from .gfl_head import GFLHead
from .gfl_v2_head import GFLv2Head
from .ld_head import LDHead

__all__ = ['GFLHead', 'GFLv2Head', 'LDHead']
