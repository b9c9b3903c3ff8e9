"""Pictures: boxes with soft edges, truth beside prediction, bar charts of a box's edges."""

from .charts import edge_figure, save_figure, sharp_and_flat
from .edges import Boxes, EdgeBins
from .palette import class_colours
from .picture import draw_boxes, side_by_side
from .visualizer import GFLVisualizer

__all__ = [
    'Boxes',
    'EdgeBins',
    'GFLVisualizer',
    'class_colours',
    'draw_boxes',
    'edge_figure',
    'save_figure',
    'sharp_and_flat',
    'side_by_side',
]
