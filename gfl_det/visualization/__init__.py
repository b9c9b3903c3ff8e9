"""Pictures of boxes: soft edges, ground truth beside predictions, bar charts of edges."""

from gfl_det.visualization.charts import edge_figure, save_figure, sharp_and_flat
from gfl_det.visualization.labels import class_colours
from gfl_det.visualization.picture import Boxes, EdgeBins, draw_boxes, side_by_side
from gfl_det.visualization.visualizer import GFLVisualizer

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
