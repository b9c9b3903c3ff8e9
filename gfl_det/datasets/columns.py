"""Columns of large COCO annotation files: read in slices, kept for later readings.

A file of millions of boxes takes minutes and gigabytes as a dict per box. Here each list is decoded
in typed slices straight into arrays. That works for plain files alone: integer ids that are unique
and refer to listed entries, four finite numbers per box, a size and a name per image. For any other
file the readers return None, and the tolerant reader (:mod:`.annotations`, :mod:`.tidying`) decides
what to correct or refuse, so that there is one place that knows each fault.

The columns of a large file are kept in the folder of ``GFL_DET_CACHE``, in a file named by the
checksum of its content. They are mapped into memory, so the processes of a machine share them.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, overload

import msgspec
import numpy as np

from gfl_det.datasets.annotations import Entry
from gfl_det.utils.files import BLOCK_BYTES, write_blocks

CACHE_VARIABLE = 'GFL_DET_CACHE'  # folder of kept columns; nothing is kept without it
CACHE_ENDING = '.columns'
CACHE_VERSION = 1
MIN_KEPT_BYTES = 1 << 24  # smaller annotation files are read in well under a second
SLICE_BYTES = 1 << 23  # JSON decoded at once
SEAM = re.compile(rb'\}[ \t\r\n]*,[ \t\r\n]*(?=\{)')  # between two entries, or in nested lists
SEAM_BYTES = 1 << 16  # searched for the last seam of a slice
MAX_SEAMS = 4  # nested ones are tried in vain
EXACT = 2**53  # integers below it are exact as float64
ALIGNMENT = 64
FALSY = (b'', b'[]', b'{}', b'null', b'""', b'0', b'false')  # outlines that count as missing


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    width: int | float
    height: int | float
    not_exhaustive_category_ids: Any = None  # LVIS


class _Category(msgspec.Struct):
    id: int
    name: str


class _Attributes(msgspec.Struct, gc=False):
    rotation: float | None = None  # CVAT, degrees


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | None = None
    ignore: bool | int | None = None
    segmentation: msgspec.Raw = msgspec.Raw()
    attributes: _Attributes | None = None
    segments_info: Any = None  # COCO panoptic


class _File(msgspec.Struct):
    images: msgspec.Raw
    annotations: msgspec.Raw
    categories: list[_Category]


class NotPlainError(Exception):
    """A file, or a step of a check, that needs the tolerant reader."""


class Columns(NamedTuple):
    """The I images, K categories and N annotations of a plain file, in file order."""

    image_ids: np.ndarray  # (I,) int64
    image_wh: np.ndarray  # (I, 2) int64 or float64, px
    names: np.ndarray  # uint8, the file names in UTF-8, one after another
    name_ends: np.ndarray  # (I,) int64
    categories: np.ndarray  # uint8, JSON: ids and names
    ids: np.ndarray  # (N,) int64
    image: np.ndarray  # (N,) int32, index into the images
    label: np.ndarray  # (N,) int32, index into the categories
    boxes: np.ndarray  # (N, 4) float64 xywh, px
    area: np.ndarray  # (N,) float64, px^2; NaN if missing
    crowd: np.ndarray  # (N,) int8: 0 or 1; -1 if missing
    ignored: np.ndarray  # (N,) bool
    outlines: np.ndarray  # uint8, the JSON of each "segmentation", one after another
    outline_ends: np.ndarray  # (N,) int64

    def category_list(self) -> list[Entry]:
        """Return id and name of each category."""
        return json.loads(self.categories.tobytes())

    def file_name(self, row: int) -> str:
        """Return the file name of an image."""
        begin = self.name_ends[row - 1] if row else 0
        return self.names[begin : self.name_ends[row]].tobytes().decode()

    def file_names(self) -> list[str]:
        """Return the file name of each image."""
        text, ends = self.names.tobytes(), self.name_ends.tolist()
        return [text[a:b].decode() for a, b in zip([0, *ends], ends)]

    def images(self) -> list[Entry]:
        """Return id, file name and size of each image."""
        rows = zip(self.image_ids.tolist(), self.file_names(), self.image_wh.tolist())
        return [dict(id=i, file_name=name, width=w, height=h) for i, name, (w, h) in rows]

    def outline(self, row: int) -> Any:
        """Return the "segmentation" of an annotation; None if it is missing or empty."""
        begin = self.outline_ends[row - 1] if row else 0
        text = self.outlines[begin : self.outline_ends[row]].tobytes()
        return json.loads(text) if text else None


class Outlines(Sequence):
    """The "segmentation" of each annotation, decoded when asked for."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns.ids)

    @overload
    def __getitem__(self, place: int) -> Any: ...

    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...

    def __getitem__(self, place: Any) -> Any:
        rows = range(len(self))[place]
        if isinstance(rows, range):
            return [self._columns.outline(row) for row in rows]
        return self._columns.outline(rows)


def read_columns(path: str | os.PathLike[str]) -> Columns | None:
    """Read a file into columns, or take those that were kept; None if it is not plain or missing.

    Large files are kept in the folder that ``GFL_DET_CACHE`` names.
    """
    try:
        with open(path, 'rb') as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        kept = _kept_path(content)
        found = None if kept is None else _load(kept)
        if found is None:
            found = parse_columns(content)
            if found is not None and kept is not None:
                found = _keep(found, kept)
        return found
    except (OSError, ValueError, OverflowError):  # missing, a device, empty, or no file name
        return None


def parse_columns(content: mmap.mmap | bytes) -> Columns | None:
    """Parse the content of a file into columns; None if it is not plain.

    >>> image = b'{"id": 7, "file_name": "a.png", "width": 64, "height": 48}'
    >>> box = b'{"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 30, 40]}'
    >>> lists = b'{"images": [%b], "annotations": [%b], "categories": [{"id": 2, "name": "cat"}]}'
    >>> parse_columns(lists % (image, box)).boxes
    array([[ 1.,  2., 30., 40.]])
    >>> parse_columns(lists % (image, box.replace(b'7', b'8'))) is None  # no such image
    True
    """
    try:
        _check_text(content)
        file = msgspec.json.decode(content, type=_File)
        images = _joined(file.images, _Image, _image_columns)
        _release(content)
        rows = _joined(file.annotations, _Annotation, _annotation_columns, content)
        return _plain(images, file.categories, rows)
    except (NotPlainError, msgspec.MsgspecError, OverflowError, RecursionError, ValueError):
        return None


def _check_text(content: mmap.mmap | bytes) -> None:
    """Check that all text is UTF-8, also where the decoder skips it."""
    decoder = getincrementaldecoder('utf-8')('strict')
    for begin in range(0, len(content), BLOCK_BYTES):
        decoder.decode(content[begin : begin + BLOCK_BYTES])
    decoder.decode(b'', final=True)


def _release(content: mmap.mmap | bytes) -> None:
    """Let go of the pages that were read; they can be read again."""
    if isinstance(content, mmap.mmap) and hasattr(mmap, 'MADV_DONTNEED'):
        content.madvise(mmap.MADV_DONTNEED)


def _slices(array: memoryview, kind: type) -> Iterator[list[Any]]:
    """Decode a JSON array piece by piece.

    A piece ends where one entry ends and the next begins. Inside nested lists and strings the text
    can look alike, but then the piece is no valid JSON and an earlier seam is tried.

    Raises:
        NotPlainError: If no seam is found: an entry is longer than a slice.
    """
    # mypy takes no variable for a type.
    decode = msgspec.json.Decoder(list[kind]).decode  # type: ignore[valid-type]
    if bytes(array[:1]) != b'[':
        raise NotPlainError
    begin = 1
    while len(array) - begin > SLICE_BYTES:
        text = bytes(array[begin : begin + SLICE_BYTES])
        first = max(0, len(text) - SEAM_BYTES)
        for seam in list(SEAM.finditer(text, first))[: -MAX_SEAMS - 1 : -1]:
            with suppress(msgspec.DecodeError):
                entries = decode(b'[' + text[: seam.start() + 1] + b']')
                break
        else:
            raise NotPlainError
        begin += seam.end()
        yield entries
    yield decode(b'[' + bytes(array[begin:]))


def _joined(
    array: msgspec.Raw,
    kind: type,
    convert: Callable[[list[Any]], dict[str, np.ndarray]],
    content: mmap.mmap | bytes = b'',
) -> dict[str, np.ndarray]:
    """Convert each slice of a list to columns and join them."""
    parts: dict[str, list[np.ndarray]] = {}
    for entries in _slices(memoryview(array), kind):
        for name, column in convert(entries).items():
            parts.setdefault(name, []).append(column)
        del entries
        _release(content)
    return {name: np.concatenate(parts.pop(name)) for name in list(parts)}


def _image_columns(entries: list[_Image]) -> dict[str, np.ndarray]:
    if any(each.not_exhaustive_category_ids is not None or not each.file_name for each in entries):
        raise NotPlainError
    names = [each.file_name.encode() for each in entries]
    sizes = [(each.width, each.height) for each in entries]
    return dict(
        ids=_column(entries, 'id', np.int64),
        sizes=np.array(sizes).reshape(-1, 2),
        names=np.frombuffer(b''.join(names), np.uint8),
        lengths=np.fromiter(map(len, names), np.int64, len(names)),
    )


def _annotation_columns(entries: list[_Annotation]) -> dict[str, np.ndarray]:
    number = len(entries)
    if any(each.segments_info is not None for each in entries):
        raise NotPlainError
    turns = {each.attributes.rotation for each in entries if each.attributes is not None}
    if any(turn is not None and turn % 360 not in (0, 180) for turn in turns):
        raise NotPlainError
    if not {each.iscrowd for each in entries} <= {None, 0, 1}:
        raise NotPlainError
    nan = float('nan')
    boxes = chain.from_iterable(map(attrgetter('bbox'), entries))
    areas = (nan if each.area is None else each.area for each in entries)
    crowds = (-1 if each.iscrowd is None else each.iscrowd for each in entries)
    outlines = [b'' if len(each) < 8 and bytes(each) in FALSY else each
                for each in map(attrgetter('segmentation'), entries)]  # fmt: skip
    return dict(
        ids=_column(entries, 'id', np.int64),
        images=_column(entries, 'image_id', np.int64),
        labels=_column(entries, 'category_id', np.int64),
        boxes=np.fromiter(boxes, float, 4 * number).reshape(-1, 4),
        area=np.fromiter(areas, float, number),
        crowd=np.fromiter(crowds, np.int8, number),
        ignored=np.fromiter((bool(each.ignore) for each in entries), bool, number),
        outlines=np.frombuffer(b''.join(outlines), np.uint8),
        lengths=np.fromiter(map(len, outlines), np.int64, number),
    )


def _column(entries: list[Any], field: str, kind: type) -> np.ndarray:
    return np.fromiter(map(attrgetter(field), entries), kind, len(entries))


def _plain(
    images: dict[str, np.ndarray], categories: list[_Category], rows: dict[str, np.ndarray]
) -> Columns:
    """Check what holds between entries.

    Raises:
        NotPlainError: If an id is not unique or unknown, a number is not usable, or nothing is
            listed.
    """
    names = [each.name for each in categories]
    category_ids = np.array([each.id for each in categories], np.int64)
    wh, boxes = images['sizes'], rows['boxes']
    if not len(wh) or not names or not all(names):
        raise NotPlainError
    if not ((wh > 0) & (wh < EXACT)).all() or not (np.abs(boxes) < EXACT).all():
        raise NotPlainError
    for ids in (images['ids'], category_ids, rows['ids']):
        ordered = np.sort(ids)
        if (ordered[1:] == ordered[:-1]).any():
            raise NotPlainError
    listed = [dict(id=each.id, name=each.name) for each in categories]
    return Columns(
        images['ids'],
        wh,
        images['names'],
        images['lengths'].cumsum(),
        np.frombuffer(json.dumps(listed).encode(), np.uint8),
        rows['ids'],
        rows_among(images['ids'], rows.pop('images')),
        rows_among(category_ids, rows.pop('labels')),
        boxes,
        rows['area'],
        rows['crowd'],
        rows['ignored'],
        rows['outlines'],
        rows['lengths'].cumsum(),
    )


def rows_among(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the index (N,) int32 of each value among unique ids.

    Raises:
        NotPlainError: If a value is not among them.
    """
    order = np.argsort(known, kind='stable').astype(np.int32)
    ordered = known[order]
    place = np.searchsorted(ordered, values).clip(max=len(known) - 1)
    if not (ordered[place] == values).all():
        raise NotPlainError
    return order[place]


def _kept_path(content: mmap.mmap) -> Path | None:
    """Return where the columns of a file are kept; None if they are not."""
    folder = os.environ.get(CACHE_VARIABLE)
    if not folder or len(content) < MIN_KEPT_BYTES:
        return None
    digest = hashlib.sha256(content).hexdigest()
    _release(content)
    return Path(folder, f'{digest}-{CACHE_VERSION}{CACHE_ENDING}')


def _keep(columns: Columns, path: Path) -> Columns:
    """Write columns and return them mapped into memory; as they are if they cannot be written."""
    layout, begin = [], 0
    for column in columns:
        layout.append((column.dtype.str, column.shape, begin))
        begin += -(-column.nbytes // ALIGNMENT) * ALIGNMENT
    header = json.dumps(layout).encode()
    header += b' ' * (-(len(header) + 8) % ALIGNMENT)

    def blocks() -> Iterator[Any]:
        yield len(header).to_bytes(8, 'little')
        yield header
        for column in columns:
            yield np.ascontiguousarray(column).reshape(-1).view(np.uint8)
            yield bytes(-column.nbytes % ALIGNMENT)

    with suppress(OSError):
        write_blocks(path, blocks())
    return _load(path) or columns


def _load(path: Path) -> Columns | None:
    """Map kept columns into memory; None if there are none that are whole."""
    try:
        content = np.memmap(path, np.uint8, 'r')
        size = int.from_bytes(content[:8].tobytes(), 'little')
        layout = json.loads(content[8 : 8 + size].tobytes())
        columns = []
        for kind, shape, begin in layout:
            dtype = np.dtype(kind)
            first = 8 + size + begin
            part = content[first : first + int(np.prod(shape)) * dtype.itemsize]
            columns.append(part.view(dtype).reshape(shape))
        return Columns(*columns)
    except (OSError, ValueError, TypeError):
        return None
