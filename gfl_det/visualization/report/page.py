"""HTML file of a report, self-contained, and its pictures.

The pictures are selected images with what the page draws on them, limited in total size.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gfl_det.datasets.images import read_image
from gfl_det.errors import DataError
from gfl_det.ops.boxes import xywh_to_xyxy
from gfl_det.utils.console import Progress
from gfl_det.visualization.picture import EdgeBins
from gfl_det.visualization.report.analysis import Analysis
from gfl_det.visualization.report.data import ReportData
from gfl_det.visualization.report.errors import best_cover, choose_images

PAGE = Path(__file__).parent / 'page'
DIGITS = 4  # significant digits; counts keep all digits
# Soft edges are drawn by the demo page's module, inlined as an object of this name.
DRAWING = PAGE.parent.parent / 'demo' / 'page' / 'drawing.js'
SCRIPTS = ('charts.js', 'sections.js', 'pictures.js', 'images.js', 'report.js')


def render(values: dict[str, Any]) -> str:
    """Build the page from body, styles, scripts and numbers.

    Args:
        values: Values from :func:`.analysis.analyse`, with ``pictures``.
    """
    return fill_page('report.html', ('report.css',), SCRIPTS, values)


def fill_page(
    body: str, styles: Sequence[str], scripts: Sequence[str], values: dict[str, Any]
) -> str:
    """Build a page from files in :data:`PAGE` and the values that its scripts read."""
    page = _text('frame.html')
    parts = dict(
        BODY=_text(body).rstrip('\n'),
        TITLE=html.escape(str(values['title'])),
        STYLE='\n'.join(map(_text, styles)),
        DATA=embed(values),
        SCRIPT='\n'.join([module_as_object(DRAWING), *map(_text, scripts)]),
    )
    for name, text in parts.items():
        before, _, after = page.partition(f'<!--{name}-->')
        page = before + text + after
    return page


def _text(name: str) -> str:
    return (PAGE / name).read_text(encoding='utf-8')


def module_as_object(path: Path) -> str:
    """Script that defines an object, named like the file, with the exports of a module.

    Pages opened from a file cannot import modules.
    """
    text = path.read_text(encoding='utf-8')
    names = re.findall(r'^export (?:const|function) (\w+)', text, re.MULTILINE)
    body = re.sub(r'^export ', '', text, flags=re.MULTILINE)
    return f'const {path.stem} = (() => {{\n{body}\nreturn {{{", ".join(names)}}};\n}})();'


def embed(values: Any) -> str:
    """JSON for a script element, in which no text ends the element or opens a comment."""
    text = json.dumps(plain(values), separators=(',', ':'), allow_nan=False)  # ASCII only
    for sign in '<>&':
        text = text.replace(sign, f'\\u{ord(sign):04x}')
    return text


def plain(values: Any) -> Any:
    """Arrays as lists, floats rounded to `DIGITS`, NaN and infinite values as None."""
    if isinstance(values, dict):
        return {str(key): plain(value) for key, value in values.items()}
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, (list, tuple)):
        return [plain(value) for value in values]
    if isinstance(values, (bool, np.bool_)):
        return bool(values)
    if isinstance(values, np.integer):
        return int(values)
    if isinstance(values, (float, np.floating)):
        return float(f'{values:.{DIGITS}g}') if math.isfinite(values) else None
    return values


SIDE_PX = 960  # longer side of a picture
QUALITY = 80
MAX_BYTES = 10_000_000  # all pictures together, with their boxes
MAX_BOXES = 100  # detections per image, best first
LEAST_SCORE = 0.05  # of detections below the common threshold, which the page can lower
STEPS = 10_000  # of scores, which are rounded down: a cut on the page keeps what it should
PERMILLE = 1000  # for probabilities
LEAST_PERMILLE = 5  # lower probabilities at the ends are left out


def draw_gallery(
    data: ReportData, analysis: Analysis, limit: int, show_progress: bool = False
) -> list[dict[str, Any]]:
    """Collect the selected images with ground truth and detections.

    Unreadable images are reported on standard error and skipped.

    Args:
        data: Data with the folder of the images; without it there are no pictures.
        analysis: Analysis of the same data.
        limit: Maximum number of images; fewer if `MAX_BYTES` is reached.
        show_progress: Show progress on standard error.

    Returns:
        Entries of the page, worst image first.
    """
    if data.folder is None:
        return []
    chosen = choose_images(analysis.judged, limit)
    cover = best_cover(analysis.all_errors)
    entries: list[dict[str, Any]] = []
    size = 0
    with Progress(len(chosen), 'pictures', show_progress) as progress:
        for image in chosen:
            try:
                entry = _entry(data, analysis, cover, image)
            except DataError as error:
                progress.say(f'warning: {error}')
                progress.advance()
                continue
            size += size_of(entry)
            if size > MAX_BYTES:
                progress.say(
                    f'pictures: {len(entries)} of {len(chosen)}, limited by their total size'
                )
                break
            entries.append(entry)
            progress.advance()
    return sorted(entries, key=lambda each: (analysis.judged.quality[each['image']], each['image']))


def size_of(entry: dict[str, Any]) -> int:
    """Bytes of an entry in the page."""
    return len(json.dumps(plain(entry), separators=(',', ':')))


def _entry(data: ReportData, analysis: Analysis, cover: np.ndarray, image: int) -> dict[str, Any]:
    """Values of an image; ``cover`` are the scores up to which each gt box is not missed."""
    assert data.folder is not None  # checked by the caller
    pixels = np.ascontiguousarray(read_image(data.folder / data.names[image])[..., ::-1])
    height, width = pixels.shape[:2]
    shrink = min(1.0, SIDE_PX / max(height, width))
    found, kept = _detections(data, analysis, image)
    return dict(
        image=image,
        size=[width, height],
        jpeg=base64.b64encode(jpeg_of(pixels, shrink)).decode(),
        kept=kept,
        found=found,
        truths=_gts(data, analysis, cover, image),
    )


def jpeg_of(pixels: np.ndarray, shrink: float) -> bytes:
    """A JPEG of pixels ``(H, W, 3)`` uint8 RGB, its sides shrunk by a factor of at most 1."""
    picture = Image.fromarray(pixels)
    if shrink < 1:
        size = [max(1, round(side * shrink)) for side in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, 'JPEG', quality=QUALITY, optimize=True)
    return file.getvalue()


def _detections(data: ReportData, analysis: Analysis, image: int) -> tuple[list[list[Any]], int]:
    """Detections of an image by descending score, and how many reach the common threshold.

    Each has class, score, box (xyxy px), kind of error or -1, row of its cell of the confusion
    matrix or -1, and its edges, if known.
    """
    known = analysis.all_errors
    mine = np.flatnonzero(data.detections.image[known.found.row] == image)
    mine = mine[np.argsort(-known.found.scores[mine], kind='stable')]
    row_of = np.full(len(data.detections.scores), -1)  # of the confusion matrix
    row_of[analysis.kept[analysis.errors.found.row]] = analysis.confusions.found
    is_kept = np.zeros(len(row_of), bool)
    is_kept[analysis.kept] = True
    rows = known.found.row[mine]
    shown = (is_kept[rows] | (known.found.scores[mine] >= LEAST_SCORE))[:MAX_BOXES]
    mine, rows = mine[:MAX_BOXES][shown], rows[:MAX_BOXES][shown]
    bins = data.bins(rows)
    scores = np.floor(known.found.scores[mine] * STEPS + 1e-9) / STEPS
    boxes = xywh_to_xyxy(data.detections.boxes[rows])
    entries = [
        [
            known.found.label[place],
            score,
            box,
            known.kind[place],
            row_of[row],
            [] if bins is None else edges_of(bins.take(index)),
        ]
        for index, (place, row, score, box) in enumerate(zip(mine, rows, scores, boxes))
    ]
    return entries, int(is_kept[rows].sum())


def edges_of(bins: EdgeBins) -> list[list[float]]:
    """Position of the first bin and step (px), and probabilities per mille, of each edge."""
    edges = []
    for positions, probabilities in zip(*bins):
        shares = np.rint(probabilities * PERMILLE).astype(int)
        there = np.flatnonzero(shares >= min(LEAST_PERMILLE, shares.max()))
        first, last = there[0], there[-1]
        step = positions[1] - positions[0]
        edges.append([positions[first], step, *shares[first : last + 1].tolist()])
    return edges


def _gts(data: ReportData, analysis: Analysis, cover: np.ndarray, image: int) -> list[list[Any]]:
    """Gt boxes of an image.

    Each has class, box (xyxy px), the score up to which it is not missed (-1: missed at any; None
    for a crowd), whether it is missed at the common threshold, and whether it is in no pair of the
    confusion matrix.
    """
    gts = data.gts
    mine = np.flatnonzero(gts.image == image)
    boxes = xywh_to_xyxy(gts.boxes[mine])
    scores = np.where(cover[mine] < 0, -1, np.floor(cover[mine] * STEPS + 1e-9) / STEPS)
    lost = analysis.confusions.gt[mine] == len(gts.class_names)
    missed = analysis.errors.missed[mine]
    crowd = gts.crowd[mine]
    return [
        [gts.label[row], box, None if crowd[i] else scores[i], missed[i], lost[i]]
        for i, (row, box) in enumerate(zip(mine, boxes))
    ]
