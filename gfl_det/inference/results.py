"""Inference results: detections per image, and their export formats.

Fields of ``instances`` (N detections by descending score; edges in the order left, top, right,
bottom; px of the original image):

=================  ==========  ====================================================================
``bboxes``         ``(N, 4)``  xyxy px
``scores``         ``(N,)``    in [0, 1]: predicted IoU, calibrated if a calibrator is set
``labels``         ``(N,)``    index into ``classes``
``raw_scores``     ``(N,)``    scores before calibration; only present if calibrated
``class_scores``   ``(N, C)``  in [0, 1], of every class, in label order; calibrated if a calibrator
                               is set, not lowered by soft NMS; only on request
                               (``with_class_scores``), with ``raw_class_scores`` if calibrated
``edge_std``       ``(N, 4)``  px, standard deviation of the edge's distribution
``edge_low``       ``(N, 4)``  px, lower end of the edge's interval: x for left and right, y for
                               top and bottom
``edge_high``      ``(N, 4)``  px, upper end; with calibrated intervals and ``level`` .9, about nine
                               in ten gt edges lie between both (docs/howto/intervals.md)
``edge_entropy``   ``(N, 4)``  nats, in [0, log(reg_max + 1)]: spread of the distribution over
                               bins, regardless of bin width
=================  ==========  ====================================================================

The ``edge_*`` fields and ``class_scores`` need a GFL head of gfl_det; other heads do not provide
them.

A result prints as a table, also in notebooks, and is a sequence of detections: an index gives one
detection as a dict; a slice, mask or list of indices gives a result with those detections.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from mmengine.structures import InstanceData
from PIL import Image
from torch import Tensor

from gfl_det.datasets.annotations import check_object
from gfl_det.datasets.tidying import tidy
from gfl_det.errors import DataError, SetupError
from gfl_det.evaluation.shown import find_id, ids_by_name, image_ids, path_ends
from gfl_det.ops.intervals import SIDES
from gfl_det.utils.files import write_text

DISTRIBUTIONS = frozenset(('edge_logits', 'bin_widths', 'prior_centres'))
EDGE_FIELDS = ('edge_std', 'edge_low', 'edge_high', 'edge_entropy')
SHOWN_ROWS = 20  # rows of a printed table
DRAWN_SCORE = 0.3  # minimum score of drawn boxes, as in mmdet's tools


@dataclass(frozen=True)
class ImageResult:
    """Detections of one image, or the reason why there are none.

    Args:
        source: Path or URL of the image or video; ``array 0`` for the first array.
        size: Height and width in px.
        instances: Detections as CPU tensors; the module docstring lists the fields.
        classes: Class names in label order.
        level: Share of gt edges that the intervals should contain; None: no intervals.
        frame: Frame number in a video, from 0.
        error: Sentence that says why this image has no detections; None: it was read.
        image: ``(H, W, 3)`` uint8 BGR, if images are kept.
        milliseconds: Time for preparation and detection, divided evenly over the images of a batch.
    """

    source: str
    size: tuple[int, int] = (0, 0)
    instances: InstanceData = field(default_factory=InstanceData)
    classes: tuple[str, ...] = ()
    level: float | None = None
    frame: int | None = None
    error: str | None = None
    image: np.ndarray | None = field(default=None, repr=False, compare=False)
    milliseconds: float | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.instances)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice | Sequence[Any] | Tensor | np.ndarray) -> ImageResult: ...

    def __getitem__(self, index: Any) -> dict[str, Any] | ImageResult:
        if isinstance(index, Integral) and not isinstance(index, bool):
            return self._detections()[index]
        if not len(self):
            return self
        chosen = index if isinstance(index, slice) else torch.as_tensor(np.asarray(index))
        if isinstance(chosen, Tensor) and not chosen.numel():
            chosen = chosen.long()
        return replace(self, instances=self.instances[chosen])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._detections())

    def __str__(self) -> str:
        if self.error is not None:
            return f'{self.name}: {self.error}'
        return '\n'.join([self.summary(), *_text_table(*self._table())])

    def _repr_html_(self) -> str:
        """HTML table for notebooks."""
        if self.error is not None:
            return f'<p>{html.escape(f"{self.name}: {self.error}")}</p>'
        return _html_table(self.summary(), *self._table())

    @property
    def pred_instances(self) -> InstanceData:
        """The instances under the name used by mmdet's data samples."""
        return self.instances

    @property
    def name(self) -> str:
        """The source, with the frame number for videos: ``a.mp4#12``."""
        return self.source if self.frame is None else f'{self.source}#{self.frame}'

    def summary(self) -> str:
        """One line: image name, number of boxes, and best score and count per class."""
        found = self.instances
        labels, scores = (found.labels.tolist(), found.scores.tolist()) if len(self) else ([], [])
        best: dict[int, float] = {}
        for label, score in zip(labels, scores):
            best.setdefault(label, score)  # scores are sorted in descending order
        number = Counter(labels)
        kinds = ', '.join(
            f'{self.classes[label]} ({score:.2f}{f", {number[label]} times" * (number[label] > 1)})'
            for label, score in best.items()
        )
        boxes = f'{len(labels)} box' + 'es' * (len(labels) != 1)
        return f'{self.name}: {boxes}' + (f': {kinds}' if kinds else '')

    def filter(
        self, score: float | None = None, classes: str | Iterable[str] | None = None
    ) -> ImageResult:
        """Select detections by score, class or both.

        Args:
            score: Minimum score, see :meth:`above`; None: no minimum.
            classes: Name or names of the classes to keep; None: all.

        Raises:
            DataError: If the detector does not know a class.
        """
        result = self if score is None else self.above(score)
        if classes is None or self.error is not None:
            return result
        names = _names(classes)
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise DataError(
                f'Unknown class {unknown[0]!r}: the detector knows {", ".join(self.classes)}.'
            )
        if not len(result):
            return result
        labels = torch.tensor([self.classes.index(name) for name in names], dtype=torch.long)
        return result[torch.isin(result.instances.labels, labels)]

    def plot(self, score: float = DRAWN_SCORE) -> Image.Image:
        """Draw the boxes on the image; a notebook shows it, ``.save(path)`` writes it.

        Args:
            score: Minimum score of drawn boxes.

        Raises:
            DataError: If the image was not kept and cannot be read again.
        """
        from gfl_det.inference.drawing import draw  # imported here: drawing imports results

        return Image.fromarray(draw(self, score))

    def to_supervision(self) -> Any:
        """Convert to ``supervision.Detections``, with class names as ``data['class_name']``.

        Edge fields and class scores are added to ``data`` too.

        Raises:
            SetupError: If supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise SetupError(
                'supervision is not installed: install it with pip install supervision.'
            ) from error
        found = self.instances
        if not len(found):
            empty = supervision.Detections.empty()
            empty.data = dict(class_name=np.zeros(0, '<U1'))
            return empty
        labels = found.labels.numpy().astype(int)
        names = (*EDGE_FIELDS, 'class_scores')
        extra = {name: found[name].numpy() for name in names if name in found}
        return supervision.Detections(
            xyxy=found.bboxes.numpy(),
            confidence=found.scores.numpy(),
            class_id=labels,
            data=dict(class_name=np.array([self.classes[label] for label in labels]), **extra),
        )

    def above(self, score: float) -> ImageResult:
        """Select the detections with at least this score."""
        if self.error is not None or not len(self):
            return self
        return replace(self, instances=self.instances[self.instances.scores >= score])

    def compact(self) -> ImageResult:
        """Drop the large parts: pixels and edge distributions."""
        kept = {name: value for name, value in self.instances.items() if name not in DISTRIBUTIONS}
        return replace(self, image=None, instances=InstanceData(**kept))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict of the image and its list of detections."""
        content: dict[str, Any] = dict(source=self.source, height=self.size[0], width=self.size[1])
        if self.frame is not None:
            content['frame'] = self.frame
        if self.error is not None:
            content['error'] = self.error
        if self.level is not None:
            content['level'] = self.level
        content['detections'] = self._detections()
        return content

    def to_coco(
        self, image_id: Any = 1, category_ids: Sequence[Any] | None = None
    ) -> list[dict[str, Any]]:
        """COCO results with ``bbox`` in xywh px, plus edge fields and raw scores.

        ``class_scores``, if requested, becomes an object from category id to score.

        Args:
            image_id: Image id.
            category_ids: Category id per class, in label order; None: labels counted from 1.
        """
        ids = range(1, len(self.classes) + 1) if category_ids is None else category_ids
        entries = []
        for each in self._detections():
            left, top, right, bottom = each.pop('bbox')
            entry = dict(image_id=image_id, category_id=ids[each.pop('label')])
            entry['bbox'] = [left, top, right - left, bottom - top]
            if 'class_scores' in each:
                each['class_scores'] = dict(zip(map(str, ids), each['class_scores']))
            entries.append({**entry, **each})
        return entries

    def to_pandas(self) -> Any:
        """Pandas table with one row per detection; see :meth:`Results.to_pandas`."""
        return Results([self]).to_pandas()

    def _table(self) -> tuple[list[str], list[list[str]], int]:
        """Titles, the first rows, and the total number of rows."""
        has_spread = 'edge_std' in self.instances
        titles = ['class', 'score', *SIDES, *([f'{side} +-' for side in SIDES] * has_spread)]
        rows = [
            [each['class'], f'{each["score"]:.3f}']
            + [f'{edge:.1f}' for edge in (*each['bbox'], *each.get('edge_std', ()))]
            for each in self[:SHOWN_ROWS]._detections()
        ]
        return titles, rows, len(self)

    def _detections(self) -> list[dict[str, Any]]:
        found = self.instances
        if not len(found):
            return []
        columns: dict[str, list[Any]] = dict(
            bbox=found.bboxes.tolist(), label=found.labels.tolist(), score=found.scores.tolist()
        )
        columns['class'] = [self.classes[label] for label in columns['label']]
        if 'raw_scores' in found:
            columns['raw_score'] = found.raw_scores.tolist()
        for name in ('class_scores', *EDGE_FIELDS):
            if name in found:
                columns[name] = found[name].tolist()
        return [dict(zip(columns, row)) for row in zip(*columns.values())]


class Results(Sequence[ImageResult]):
    """Results of several images, in input order."""

    def __init__(self, images: Iterable[ImageResult] = ()) -> None:
        self.images = list(images)

    @overload
    def __getitem__(self, index: int) -> ImageResult: ...

    @overload
    def __getitem__(self, index: slice) -> Results: ...

    def __getitem__(self, index: int | slice) -> ImageResult | Results:
        return Results(self.images[index]) if isinstance(index, slice) else self.images[index]

    def __iter__(self) -> Iterator[ImageResult]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __str__(self) -> str:
        return '\n'.join([self.summary(), *_text_table(*self._table())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """HTML table for notebooks."""
        return _html_table(self.summary(), *self._table())

    def summary(self) -> str:
        """One line: number of images, boxes per class, and failures."""
        number: Counter[str] = Counter()
        for each in self.images:
            labels = each.instances.labels.tolist() if len(each) else []
            number.update(each.classes[label] for label in labels)
        kinds = ', '.join(f'{name} ({count})' for name, count in number.most_common())
        images = f'{len(self)} image' + 's' * (len(self) != 1)
        boxes = f'{sum(number.values())} box' + 'es' * (sum(number.values()) != 1)
        failed = f', {len(self.failures)} unread' if self.failures else ''
        return f'{images}{failed}, {boxes}' + (f': {kinds}' if kinds else '')

    def filter(
        self, score: float | None = None, classes: str | Iterable[str] | None = None
    ) -> Results:
        """Apply :meth:`ImageResult.filter` to each result."""
        names = None if classes is None else _names(classes)
        return Results(each.filter(score, names) for each in self.images)

    def plot(self, score: float = DRAWN_SCORE) -> list[Image.Image]:
        """Apply :meth:`ImageResult.plot` to each result without error."""
        return [each.plot(score) for each in self.images if each.error is None]

    def save_images(self, folder: str | PathLike[str], score: float = DRAWN_SCORE) -> list[Path]:
        """Draw all images without errors into a folder, created if missing; return the paths.

        Raises:
            DataError: If the folder cannot be written, or an image is neither kept nor readable.
        """
        from gfl_det.inference.drawing import Drawer  # imported here: drawing imports results

        read = [each for each in self.images if each.error is None]
        drawer = Drawer(Path(folder), read[0].classes if read else (), score)
        return [drawer(each) for each in read]

    def to_supervision(self) -> list[Any]:
        """Apply :meth:`ImageResult.to_supervision` to each result; failures give empty ones."""
        return [each.to_supervision() for each in self.images]

    def _table(self) -> tuple[list[str], list[list[str]], int]:
        rows = []
        for each in self.images[:SHOWN_ROWS]:
            size = 'unread' if each.error is not None else f'{each.size[1]} x {each.size[0]}'
            best = f'{float(each.instances.scores.max()):.3f}' if len(each) else ''
            rows.append([each.name, size, str(len(each)), best])
        return ['image', 'px', 'boxes', 'best score'], rows, len(self)

    @property
    def failures(self) -> list[ImageResult]:
        """Results of images that could not be read; each ``error`` says why."""
        return [each for each in self.images if each.error is not None]

    def to_dict(self) -> list[dict[str, Any]]:
        """Apply :meth:`ImageResult.to_dict` to each result, failures included."""
        return [each.to_dict() for each in self.images]

    def to_coco(self, annotations: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """COCO results of all images without errors, as pycocotools' ``loadRes`` takes them.

        Args:
            annotations: Parsed COCO file that provides the ids: images are found by file name,
                classes by name. None: images (failures included) and classes are numbered from 1 in
                order, and entries also hold ``file_name``.

        Raises:
            DataError: If ``annotations`` lack an image or class or list it twice, or two results
                belong to one image.
        """
        if annotations is None:
            return [
                {**entry, 'file_name': each.name}
                for number, each in enumerate(self.images, 1)
                for entry in each.to_coco(number)
            ]
        try:
            check_object(annotations, 'The annotation file')
            meant, _ = tidy(dict(annotations), 'The annotation file')
            images = image_ids(meant['images'])
            categories = ids_by_name(meant['categories'], 'name', 'class')
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'The annotations are not a parsed COCO file ({error!r:.200}): give one.'
            ) from error
        entries = []
        taken: dict[Any, str] = {}
        for each in self.images:
            if each.error is None:
                image_id = find_id(images, path_ends(each.source), each.source, 'image')
                if image_id in taken:
                    raise DataError(
                        f'{taken[image_id]} and {each.name} both match image {image_id!r} of the '
                        'annotations: give one of them, or annotations with folders in file names.'
                    )
                taken[image_id] = each.name
                names = each.classes
                ids = [find_id(categories, [name], name, 'class') for name in names]
                entries += each.to_coco(image_id, ids)
        return entries

    def to_pandas(self) -> Any:
        """Pandas table with one row per detection.

        Columns: ``source, frame, class, label, score, raw_score, left, top, right, bottom``, and
        one per side and edge field, such as ``left_std`` and ``top_low``; with ``class_scores``
        one per class, such as ``score of cat``.

        Raises:
            SetupError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise SetupError(
                'pandas is not installed: install it with pip install "gfl_det[pandas]".'
            ) from error
        rows = [_row(image, each) for image in self.images for each in image._detections()]
        columns = ['source', 'frame', 'class', 'label', 'score', *SIDES]
        return pandas.DataFrame(rows, columns=None if rows else columns)

    def save(self, path: str | PathLike[str], annotations: Mapping[str, Any] | None = None) -> None:
        """Write :meth:`to_coco` as JSON; the folder is created if missing.

        Raises:
            DataError: If the path does not end in .json or cannot be written.
        """
        target = Path(path)
        if target.suffix != '.json':
            raise DataError(f'{path} must end in .json: results are written as COCO JSON.')
        write_text(target, json.dumps(self.to_coco(annotations)))


def _text_table(titles: list[str], rows: list[list[str]], number: int) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(titles, *rows)]
    lines = [
        '  '.join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in (titles, *rows)
    ]
    return lines if number == len(rows) else [*lines, f'... and {number - len(rows)} more']


def _html_table(title: str, titles: list[str], rows: list[list[str]], number: int) -> str:
    def line(kind: str, cells: list[str]) -> str:
        return '<tr>' + ''.join(f'<{kind}>{html.escape(cell)}</{kind}>' for cell in cells) + '</tr>'

    more = f'<p>... and {number - len(rows)} more</p>' if number > len(rows) else ''
    body = ''.join(line('td', row) for row in rows)
    table = f'<table>{line("th", titles)}{body}</table>' if rows else ''
    return f'<p>{html.escape(title)}</p>{table}{more}'


def _row(image: ImageResult, detection: dict[str, Any]) -> dict[str, Any]:
    row = dict(source=image.source, frame=image.frame)
    row.update((name, detection[name]) for name in ('class', 'label', 'score'))
    if 'raw_score' in detection:
        row['raw_score'] = detection['raw_score']
    row.update(zip(SIDES, detection['bbox']))
    for name in EDGE_FIELDS:
        kind = name.removeprefix('edge_')
        row.update((f'{side}_{kind}', value) for side, value in zip(SIDES, detection.get(name, ())))
    scores = zip(image.classes, detection.get('class_scores', ()))
    row.update((f'score of {name}', value) for name, value in scores)
    return row


def _names(classes: str | Iterable[str]) -> list[str]:
    several = isinstance(classes, Iterable) and not isinstance(classes, str)
    return list(map(str, classes if several else [classes]))
