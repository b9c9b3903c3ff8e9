"""One page about a detector: its numbers, its errors, its pictures, without a network."""

from .analysis import Analysis, analyse
from .confusion import confusion_matrix
from .data import ReportData
from .errors import KINDS, Errors, find_errors, oracle_gains
from .gallery import gallery
from .page import render

__all__ = [
    'KINDS',
    'Analysis',
    'Errors',
    'ReportData',
    'analyse',
    'confusion_matrix',
    'find_errors',
    'gallery',
    'oracle_gains',
    'render',
]
