"""Report page of a detector: metrics, errors and pictures in one HTML file."""

from gfl_det.visualization.report.analysis import Analysis, analyse
from gfl_det.visualization.report.data import ReportData
from gfl_det.visualization.report.errors import (
    KINDS,
    Errors,
    confusion_matrix,
    find_errors,
    oracle_gains,
)
from gfl_det.visualization.report.page import draw_gallery, render

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
