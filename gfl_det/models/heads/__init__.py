"""Detection heads."""

from gfl_det.models.heads.gfl_head import GFLHead
from gfl_det.models.heads.gfl_v2_head import GFLv2Head
from gfl_det.models.heads.ld_head import LDHead
from gfl_det.models.heads.nanodet_plus_head import NanoDetPlusHead

__all__ = ['GFLHead', 'GFLv2Head', 'LDHead', 'NanoDetPlusHead']
