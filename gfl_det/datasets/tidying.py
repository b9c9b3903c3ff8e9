"""Normalisation of annotation files as written by labelling tools.

Image files are matched by name even with paths of other machines. Numbers written as strings become
numbers, references match ids by value, missing boxes are computed from outlines, and images with
only a URL take its last part as file name. Every reader of the package starts here, so all accept
the same files with the same values. The parsed file is never modified: only changed entries are
copied, and a valid column costs a single check of its types.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from gfl_det.datasets.annotations import Entry, as_boxes, as_number, find, is_id, is_name
from gfl_det.errors import DataError

NUMBER = r'[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?'
FOUR_NUMBERS = re.compile(rf'\s*[\[(]?\s*({NUMBER}(?:\s*[,;\s]\s*{NUMBER}){{3}})\s*[\])]?\s*')
MAX_DIGITS = 40  # of a number written as a string
ADDRESSES = ('coco_url', 'url', 'flickr_url', 'path')  # fields used for images without a file_name
ODD_SIGNS = frozenset('\\%:?')  # in foreign paths, encoded names and URLs


class Correction(NamedTuple):
    """Entries whose values are normalised on reading.

    Without a ``fix`` they are read unchanged, as COCO JSON cannot express their meaning.
    """

    code: str
    text: str
    ids: list[Any]
    fix: str = ''

    def __str__(self) -> str:
        fix = f' -> {self.fix}' if self.fix else ''
        return f'{self.text}: {find(self.ids)}{fix}'


def tidy(dataset: Entry, source: str) -> tuple[Entry, list[Correction]]:
    """Normalise a parsed file.

    Args:
        dataset: Parsed file; not modified. Lists and entries may have any type: later checks report
            faults.
        source: File name for messages.

    Returns:
        Normalised file, and the corrections.

    Raises:
        DataError: If the file has another format: COCO panoptic JSON, or a labelling tool's own.
    """
    refuse_other_formats(dataset, source)
    changes: list[Correction] = []
    lists = {
        key: dataset[key]
        for key in ('images', 'annotations', 'categories')
        if isinstance(dataset.get(key), list)
    }
    images, annotations = lists.get('images', []), lists.get('annotations', [])
    images = _map_fields(images, ('width', 'height'), from_text, changes, 'images', 'numbers')
    images = _name_files(images, changes)
    annotations = _map_fields(
        annotations, ('area', 'iscrowd'), from_text, changes, 'annotations', 'numbers'
    )
    annotations = _map_fields(annotations, ('bbox',), box_from_text, changes, 'boxes', 'numbers')
    annotations = _outline_boxes(annotations, changes)
    for field, key in (('image_id', 'images'), ('category_id', 'categories')):
        annotations = _join(annotations, field, lists.get(key, []), key, changes)
    _tell_rotated(annotations, changes)
    _tell_lvis(images, changes)
    new = {'images': images, 'annotations': annotations}
    return {**dataset, **{key: new[key] for key in new if key in lists}}, changes


def refuse_other_formats(dataset: Entry, source: str) -> None:
    """Reject files of other known formats by name.

    Raises:
        DataError: If the file has another known format.
    """
    entries = dataset.get('annotations')
    first = entries[0] if isinstance(entries, list) and entries else None
    if isinstance(first, dict) and isinstance(first.get('segments_info'), list):
        raise DataError(
            f'{source} is COCO panoptic JSON (its annotations hold "segments_info"): give the '
            'instances file of the same images, or write an annotation with a bbox per segment.'
        )
    if 'images' in dataset:
        return
    value = next(iter(dataset.values()), None)  # VIA's annotations are named by their images
    known = {*dataset, *(value if isinstance(value, dict) else ())}
    for keys, tool in (
        (('shapes', 'imagePath'), 'a LabelMe file, of one image'),
        (('_via_img_metadata',), 'a project of the VGG Image Annotator'),
        (('assets', 'tags'), 'a VoTT project'),
        (('type', 'features'), 'GeoJSON'),
        (('objects', 'size'), 'a Supervisely file, of one image'),
        (('item', 'annotations'), 'a Darwin file of V7, of one image'),
        (('items', 'categories'), 'a Datumaro file'),
        (('project', 'view'), 'a project of the VGG Image Annotator'),
        (('filename', 'regions'), 'annotations of the VGG Image Annotator'),
    ):
        if all(key in known for key in keys):
            raise DataError(f'{source} is {tool}, not a COCO JSON: export it as COCO.')


def from_text(value: Any) -> Any:
    """Convert a numeric string to a number; return anything else unchanged."""
    if not isinstance(value, str) or len(value) > MAX_DIGITS:
        return value
    text = value.strip()
    if not re.fullmatch(NUMBER, text):
        return value
    return int(text) if re.fullmatch(r'[+-]?\d+', text) else float(text)


def box_from_text(value: Any) -> Any:
    """Convert a box given as strings, or as one string, to numbers."""
    if isinstance(value, list) and len(value) == 4 and str in map(type, value):
        numbers = [from_text(each) for each in value]
        return value if str in map(type, numbers) else numbers
    if isinstance(value, str) and len(value) <= 5 * MAX_DIGITS:
        found = FOUR_NUMBERS.fullmatch(value)
        if found is not None:
            return [from_text(each) for each in re.findall(NUMBER, found[1])]
    return value


def _map_fields(
    entries: list[Any],
    fields: tuple[str, ...],
    read: Callable[[Any], Any],
    changes: list[Correction],
    key: str,
    what: str,
) -> list[Any]:
    """Apply a string reader to fields, and copy entries whose values change."""
    ids = []
    for field in fields:
        values = [entry.get(field) if isinstance(entry, dict) else None for entry in entries]
        if not _holds_text(values):
            continue
        entries = list(entries)
        for index, value in enumerate(values):
            number = read(value)
            if number is not value:
                entries[index] = {**entries[index], field: number}
                ids.append(_name(index, entries[index]))
    if ids:
        text = f'{" or ".join(fields)} of {key} written as strings'
        ids = list(dict.fromkeys(ids))
        changes.append(Correction(f'{key}.texts', text, ids, f'read as {what}'))
    return entries


def _holds_text(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    if str in kinds:
        return True
    return list in kinds and any(
        str in map(type, value) for value in values if type(value) is list and len(value) == 4
    )


def _name_files(images: list[Any], changes: list[Correction]) -> list[Any]:
    """Name images without a file_name by the last part of their URL."""
    named, ids = images, []
    for index, image in enumerate(images):
        if not isinstance(image, dict) or image.get('file_name') not in (None, ''):
            continue
        address = next((image[key] for key in ADDRESSES if is_name(image.get(key))), None)
        tails = [] if address is None else path_tails(address)
        if tails:
            named = list(images) if named is images else named
            named[index] = {**image, 'file_name': tails[-1]}
            ids.append(_name(index, image))
    if ids:
        text = 'images with a URL instead of a file_name'
        changes.append(Correction('images.address', text, ids, 'file_name set to its last part'))
    return named


def path_tails(name: str) -> list[str]:
    r"""Return possible local paths for a stored path, longest first.

    >>> path_tails('https://host/val/My%20cat.png')
    ['val/My cat.png', 'My cat.png']
    >>> path_tails(r'..\images\7.png')
    ['images/7.png', '7.png']
    """
    text = name
    if '://' in name or '?' in name:
        try:
            parts = urlsplit(name)
            stored = parse_qs(parts.query).get('d')  # local files of Label Studio
        except ValueError:  # brackets that do not hold an IP address
            return []
        text = stored[0] if stored else parts.path
    steps = [each for each in unquote(text).replace('\\', '/').split('/') if each not in ('', '.')]
    if '..' in steps:
        steps = steps[len(steps) - steps[::-1].index('..') :]
    return ['/'.join(steps[index:]) for index in range(len(steps))]


def _outline_boxes(annotations: list[Any], changes: list[Correction]) -> list[Any]:
    """Compute missing boxes from outlines."""
    values = [entry.get('bbox') if isinstance(entry, dict) else None for entry in annotations]
    _, is_numeric = as_boxes(values)
    made, ids = annotations, []
    for index in np.flatnonzero(~is_numeric):
        entry = annotations[index]
        box = outline_box(entry.get('segmentation')) if isinstance(entry, dict) else None
        if box is not None:
            made = list(annotations) if made is annotations else made
            made[index] = {**entry, 'bbox': box}
            ids.append(_name(int(index), entry))
    if ids:
        text = 'annotations with an outline but without a box'
        changes.append(Correction('boxes.outline', text, ids, 'box set to that of the outline'))
    return made


def outline_box(segmentation: Any) -> list[float] | None:
    """Return the xywh box of polygons or of a run-length encoded mask; None for anything else.

    >>> outline_box([[60, 39, 117, 39, 117, 135]])
    [60, 39, 57, 96]
    """
    if isinstance(segmentation, dict):
        return _mask_box(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    flat = not isinstance(segmentation[0], list)
    points: list[Any] = []
    for polygon in [segmentation] if flat else segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2:
            return None
        points += [from_text(each) for each in polygon]
    numbers = [as_number(each) for each in points]
    if len(points) < 4 or any(each is None or not np.isfinite(each) for each in numbers):
        return None
    x, y = points[::2], points[1::2]
    box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    return box if box[2] > 0 and box[3] > 0 else None


def _mask_box(mask: Entry) -> list[float] | None:
    """Return the box of a mask, whose runs follow the columns and start with background."""
    size, counts = mask.get('size'), mask.get('counts')
    if not (isinstance(size, list) and len(size) == 2 and {type(each) for each in size} == {int}):
        return None
    height, width = size
    if not (0 < height <= 10**5 and 0 < width <= 10**5):
        return None
    runs = counts if isinstance(counts, list) else _decoded_runs(counts)
    if not runs or {type(each) for each in runs} != {int} or min(runs) < 0:
        return None
    if sum(runs) != height * width:
        return None
    ends = np.cumsum(runs)
    first, last = ends[:-1:2], ends[1::2] - 1  # first and last pixels of the object's runs
    there = last >= first[: len(last)]
    first, last = first[: len(last)][there], last[there]
    if not len(first):
        return None
    columns = first // height, last // height
    whole = columns[1] > columns[0]  # the run continues in the next column
    top = np.where(whole, 0, first % height).min()
    foot = np.where(whole, height - 1, last % height).max()
    left, right = columns[0].min(), columns[1].max()
    return [float(left), float(top), float(right - left + 1), float(foot - top + 1)]


def _decoded_runs(text: Any) -> list[int] | None:
    """Decode the run lengths of COCO's compressed string: six bits per character, five of them
    data.

    From the third run on, differences to the run two places before are stored.
    """
    if not isinstance(text, str):
        return None
    runs: list[int] = []
    place = 0
    while place < len(text):
        value, shift = 0, 0
        while True:
            if place == len(text) or not 48 <= ord(text[place]) < 112 or shift > 60:
                return None
            letter = ord(text[place]) - 48
            place += 1
            value |= (letter & 0x1F) << shift
            shift += 5
            if not letter & 0x20:
                break
        if letter & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def _join(
    annotations: list[Any], field: str, targets: list[Any], key: str, changes: list[Correction]
) -> list[Any]:
    """Match references to ids of the same value: "7" to 7, and 7 to "7"."""
    ids = [entry.get('id') for entry in targets if isinstance(entry, dict)]
    known = {each for each in ids if is_id(each)}
    unknown = {
        entry[field]
        for entry in annotations
        if isinstance(entry, dict) and is_id(entry.get(field)) and entry[field] not in known
    }
    if not unknown:
        return annotations
    meant = _by_value(known)
    new = {each: meant[value] for each in unknown if (value := from_text(each)) in meant}
    joined = list(annotations)
    found = []
    for index, entry in enumerate(annotations):
        if isinstance(entry, dict) and is_id(entry.get(field)) and entry[field] in new:
            joined[index] = {**entry, field: new[entry[field]]}
            found.append(_name(index, entry))
    if found:
        text = f'annotations whose {field} has another type than the id in {key}'
        changes.append(Correction(f'annotations.{field}_type', text, found, 'joined by value'))
    return joined


def _tell_rotated(annotations: list[Any], changes: list[Correction]) -> None:
    """Report boxes rotated in CVAT, whose ``bbox`` holds the unrotated box."""
    ids = []
    for index, entry in enumerate(annotations):
        attributes = entry.get('attributes') if isinstance(entry, dict) else None
        turn = attributes.get('rotation') if isinstance(attributes, dict) else None
        degrees = None if turn is None else as_number(from_text(turn))
        if degrees is not None and degrees % 360 not in (0, 180):
            ids.append(_name(index, entry))
    if ids:
        text = (
            'rotated boxes (attributes.rotation), whose bbox does not enclose the '
            'object: export them unrotated, or as polygons'
        )
        changes.append(Correction('boxes.rotated', text, ids))


def _tell_lvis(images: list[Any], changes: list[Correction]) -> None:
    """Report LVIS, whose images are labelled only for some classes."""
    ids = [
        _name(index, image)
        for index, image in enumerate(images)
        if isinstance(image, dict) and image.get('not_exhaustive_category_ids') is not None
    ]
    if ids:
        text = (
            "LVIS annotations, whose images are not labelled for every class: COCO's metric counts "
            'correct detections of the others as false'
        )
        changes.append(Correction('images.lvis', text, ids))


def _by_value(known: Iterable[Any]) -> dict[Any, Any]:
    """Return ids by numeric value, without ambiguous values."""
    meant: dict[Any, Any] = {}
    shared = set()
    for each in known:
        value = from_text(each)
        if value in meant:
            shared.add(value)
        meant[value] = each
    return {value: each for value, each in meant.items() if value not in shared}


def _name(index: int, entry: Entry) -> Any:
    """Return an entry's id, or its index in the list if it has none."""
    return entry['id'] if is_id(entry.get('id')) else index


def find_file(folder: str, name: str) -> str | None:
    """Return the name below a folder of the matching file; None if there is none.

    Foreign paths (with backslashes, ``%20``, storage URLs) are matched by their decoded ends,
    longest first.
    """
    try:
        if os.path.isfile(os.path.join(folder, name)):
            return name
        tails = (tail for tail in path_tails(name) if os.path.isfile(os.path.join(folder, tail)))
        return next(tails, None)
    except (OSError, ValueError):  # invalid file name
        return None


def is_there(folder: str, name: str) -> bool:
    """Whether the data set will find an image."""
    if os.path.exists(os.path.join(folder, name)):
        return True
    return not ODD_SIGNS.isdisjoint(name) and find_file(folder, name) is not None


def renamed_files(folder: str, names: Iterable[str]) -> dict[str, str]:
    """Return unique files that match names with unusual characters and no file of that name."""
    listed = list(names)
    found = {name: find_file(folder, name) for name in listed if not ODD_SIGNS.isdisjoint(name)}
    return meant_once({n: file for n, file in found.items() if file not in (None, n)}, listed)


def meant_once(new: Mapping[str, str | None], listed: Iterable[str]) -> dict[str, str]:
    """Return the new names that no other image has or gets."""
    if not new:
        return {}
    times = Counter(new.get(name, name) for name in set(listed))
    return {name: file for name, file in new.items() if file is not None and times[file] == 1}
