"""One page about a detector: its numbers, its errors, its pictures, without a network."""

from .analysis import Analysis, analyse
from .confusion import confusion_matrix
from .data import ReportData
from .errors import KINDS, Errors, find_errors, oracle_gains
from .gallery import draw_gallery
from .page import render

__all__ = [
    'KINDS',
    'Analysis',
    'Errors',
    'ReportData',
    'analyse',
    'confusion_matrix',
    'draw_gallery',
    'find_errors',
    'oracle_gains',
    'render',
]
