"""The data of a report, whether it comes from files or from a detector that was run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from gfl_det.datasets.table import table_of
from gfl_det.evaluation.detections import Detections, Truths
from gfl_det.ops.boxes import xywh_to_xyxy
from gfl_det.visualization.edges import EdgeBins, edge_bins

NORMAL_BINS = np.linspace(-3, 3, 17)  # deviations from the mean
LEAST_STD_PX = 0.25  # a band narrower than that cannot be seen


class EdgeLogits(NamedTuple):
    """The distributions of the edges of N detections, as a head gives them."""

    edge_logits: np.ndarray  # (N, 4, num_bins)
    bin_widths: np.ndarray  # (N, 4) px
    prior_centres: np.ndarray  # (N, 2) px

    def take(self, rows: np.ndarray) -> EdgeLogits:
        """Those of some detections."""
        return EdgeLogits(*(values[rows] for values in self))

    def bins(self, rows: np.ndarray) -> EdgeBins:
        """Where the edges of some detections may lie."""
        return edge_bins(SimpleNamespace(**self.take(rows)._asdict()))


class ReportData(NamedTuple):
    """Ground truth and N detections of a data set, and what else is known of them."""

    title: str
    facts: list[tuple[str, str]]  # where the numbers come from
    truths: Truths
    area: np.ndarray  # (M,) px, of the annotations
    names: list[str]  # of the image files, in the order of truths.image_ids
    folder: Path | None  # of the image files
    detections: Detections  # with the scores that the report is about
    raw_scores: np.ndarray | None = None  # (N,) before calibration, where there was one
    edge_std: np.ndarray | None = None  # (N, 4) px: left, top, right, bottom
    intervals: tuple[np.ndarray, np.ndarray] | None = None  # ends, each (N, 4) px
    level: float | None = None  # share of true edges that the intervals are to hold
    distributions: EdgeLogits | None = None
    scalars: Sequence[Path] = ()  # files of training curves, the oldest first

    def take(self, rows: np.ndarray) -> ReportData:
        """The same with the detections of some indices."""
        intervals, distributions = self.intervals, self.distributions
        return self._replace(
            detections=self.detections.take(rows),
            raw_scores=None if self.raw_scores is None else self.raw_scores[rows],
            edge_std=None if self.edge_std is None else self.edge_std[rows],
            intervals=None if intervals is None else (intervals[0][rows], intervals[1][rows]),
            distributions=None if distributions is None else distributions.take(rows),
        )

    def bins(self, rows: np.ndarray) -> EdgeBins | None:
        """Distributions of the edges of some detections; from deviations alone normal ones."""
        if self.distributions is not None:
            return self.distributions.bins(rows)
        if self.edge_std is None:
            return None
        edges = xywh_to_xyxy(self.detections.boxes[rows])
        std = np.maximum(self.edge_std[rows], LEAST_STD_PX)
        positions = edges[..., None] + std[..., None] * NORMAL_BINS
        density = np.exp(-(NORMAL_BINS**2) / 2)
        return EdgeBins(positions, np.broadcast_to(density / density.sum(), positions.shape))


def box_areas(dataset: dict, truths: Truths) -> np.ndarray:
    """The areas ``(M,)`` of gt boxes in px: as annotated, else of the boxes.

    Args:
        dataset: the parsed annotation file.
        truths: of the file, or of some of its classes and images.
    """
    table = table_of(dataset, 'the annotations')
    images, classes = set(truths.image_ids), set(truths.category_ids)
    images_kept = np.array([each in images for each in table.image_ids], bool)
    classes_kept = np.array([each in classes for each in table.category_ids], bool)
    return table.area[images_kept[table.image] & classes_kept[table.label]]


def file_names(dataset: dict, truths: Truths) -> list[str]:
    """The image files' names in the order of the annotated images; ids where they have none."""
    names = {each['id']: str(each.get('file_name') or each['id']) for each in dataset['images']}
    return [names[image_id] for image_id in truths.image_ids]
