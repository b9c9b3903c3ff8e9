"""Page to go through suspicious labels: label, prediction with soft edges, and a decision each."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gfl_det.datasets.images import read_image
from gfl_det.errors import DataError
from gfl_det.evaluation.detections import GroundTruth
from gfl_det.evaluation.label_errors import KINDS, SIDES, SuspectLabel
from gfl_det.evaluation.label_evidence import UncertainDetections
from gfl_det.ops.boxes import xywh_to_xyxy
from gfl_det.utils.console import Progress
from gfl_det.visualization.labels import class_colours
from gfl_det.visualization.picture import normal_bins
from gfl_det.visualization.report.page import SIDE_PX, edges_of, fill_page, jpeg_of, size_of

MARGIN = 0.7  # of the longer side around a box, so that its surroundings are seen
LEAST_MARGIN_PX = 24
MAX_BOXES = 20  # other detections drawn
MAX_BYTES = 20_000_000  # all pictures together
SHOWN_SCORE = 0.3  # least score of the other detections drawn
SCRIPTS = ('charts.js', 'pictures.js', 'review.js')
STYLES = ('report.css', 'review.css')


class ReviewData(NamedTuple):
    """Suspicious labels with what they were found in."""

    title: str
    annotations: str  # name of the annotation file
    sha256: str  # its digest
    gts: GroundTruth
    names: list[str]  # image file names, in the order of gts.image_ids
    found: UncertainDetections
    suspects: Sequence[SuspectLabel]
    entries: Sequence[dict[str, Any]]  # the suspects as written into the list


def review_page(
    data: ReviewData, files: Sequence[Path] | None, limit: int, show_progress: bool = False
) -> str:
    """Build the page.

    Args:
        data: Suspects and what they were found in.
        files: Image files in the order of the images; None: a page without pictures.
        limit: Maximum number of suspects with pictures.
        show_progress: Show progress on standard error.
    """
    number = Counter(each.kind for each in data.suspects)
    kinds = [kind for kind in KINDS if number[kind]]
    names = [data.names[each.image] for each in data.suspects]
    colours = class_colours(len(data.gts.class_names))
    pictures = [] if files is None else _pictures(data, files, limit, show_progress)
    values = dict(
        title=data.title,
        annotations=data.annotations,
        sha256=data.sha256,
        counts=[[kind, number[kind]] for kind in kinds],
        kinds=kinds,
        entries=json.dumps(data.entries),
        sentences=[sentence(each, data.gts) for each in data.suspects],
        images=[[name] for name in names],
        classes=data.gts.class_names,
        colours=[f'#{r:02x}{g:02x}{b:02x}' for r, g, b in colours.tolist()],
        pictures=pictures + [None] * (len(names) - len(pictures)),
    )
    return fill_page('review.html', STYLES, SCRIPTS, values)


def sentence(suspect: SuspectLabel, gts: GroundTruth) -> str:
    """What is suspicious about a label, and the suggestion, in one sentence."""
    names = gts.class_names
    new = names[suspect.label]
    old = names[gts.label[suspect.gt]] if suspect.gt >= 0 else new
    if suspect.kind == 'loose':
        assert suspect.edge is not None  # set for this kind
        where = SIDES[suspect.edge]
        return (
            f'{old}: its {where} edge is {suspect.pixels:.1f} px, {suspect.deviations:.1f} '
            'deviations, from the predicted one'
        )
    return {
        'class': f'{old}, which looks like {new}',
        'missing': f'{new} without a label',
        'spurious': f'{old} where nothing is found',
        'duplicate': f'{old}, labelled twice',
    }[suspect.kind]


def _pictures(
    data: ReviewData, files: Sequence[Path], limit: int, show_progress: bool
) -> list[dict[str, Any] | None]:
    """Pictures of the first suspects; None where an image cannot be read."""
    chosen = data.suspects[:limit]
    pictures: list[dict[str, Any] | None] = [None] * len(chosen)
    size = 0
    by_image = sorted(range(len(chosen)), key=lambda index: chosen[index].image)
    image, pixels = -1, None
    with Progress(len(chosen), 'pictures', show_progress) as progress:
        for index in by_image:
            progress.advance()
            suspect = chosen[index]
            if suspect.image != image:
                image, pixels = suspect.image, _read(files[suspect.image], progress)
            if pixels is None or size > MAX_BYTES:
                continue
            pictures[index] = entry = _picture(data, index, pixels)
            size += size_of(entry)
        if size > MAX_BYTES:
            progress.say('pictures: some are left out, limited by their total size')
    return pictures


def _read(path: Path, progress: Progress) -> np.ndarray | None:
    try:
        return np.ascontiguousarray(read_image(path)[..., ::-1])
    except DataError as error:
        progress.say(f'warning: {error}')
        return None


def _picture(data: ReviewData, place: int, pixels: np.ndarray) -> dict[str, Any]:
    """Values of a picture as the report's gallery has them, of the part around a suspect."""
    gts, found, suspect = data.gts, data.found, data.suspects[place]
    mine = gts.boxes[[suspect.gt]] if suspect.gt >= 0 else np.zeros((0, 4))
    seen = [suspect.box[None], mine]
    if suspect.detection >= 0:
        seen.append(found.boxes[[suspect.detection]])
    window = _window(xywh_to_xyxy(np.concatenate(seen)), pixels.shape[1], pixels.shape[0])
    left, top, right, bottom = window
    labels = np.array([suspect.gt])
    if suspect.kind in ('missing', 'duplicate'):  # others say why
        labels = _inside(gts.image == suspect.image, gts.boxes, window)
    rows = np.array([suspect.detection])
    if suspect.detection < 0:
        here = (found.image == suspect.image) & (found.scores >= SHOWN_SCORE)
        rows = _inside(here, found.boxes, window)
        rows = rows[np.argsort(-found.scores[rows])][:MAX_BOXES]
    corner = np.array([left, top, left, top])
    edges = xywh_to_xyxy(found.boxes[rows]) - corner
    bins = normal_bins(edges, found.edge_std[rows])
    shrink = min(1.0, SIDE_PX / max(right - left, bottom - top))
    part = np.ascontiguousarray(pixels[top:bottom, left:right])
    return dict(
        image=place,
        size=[right - left, bottom - top],
        jpeg=base64.b64encode(jpeg_of(part, shrink)).decode(),
        kept=len(rows),
        found=[
            [found.label[row], found.scores[row], box, -1, -1, edges_of(bins.take(index))]
            for index, (row, box) in enumerate(zip(rows, edges))
        ],
        truths=[
            [gts.label[row], box, -1, False, False]
            for row, box in zip(labels, xywh_to_xyxy(gts.boxes[labels]) - corner)
        ],
    )


def _window(boxes: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """Part of an image around boxes (xyxy px) with a margin, at least a pixel."""
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    margin = max(LEAST_MARGIN_PX, MARGIN * float((high - low).max()))
    left, top = np.clip(np.floor(low - margin), 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(np.ceil(high + margin), (left + 1, top + 1), (width, height))
    return int(left), int(top), int(right), int(bottom)


def _inside(chosen: np.ndarray, boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Indices of the chosen boxes (xywh px) that lie partly in a window."""
    left, top, right, bottom = window
    x1, y1, x2, y2 = xywh_to_xyxy(boxes).T
    return np.flatnonzero(chosen & (x1 < right) & (x2 > left) & (y1 < bottom) & (y2 > top))
