"""Annotation files as labelling tools write them, read for what they mean.

Image files are found by the names that annotation files give them, whatever machine these are
of. Numbers written as texts become numbers, references join ids by value, boxes that are absent are
taken from outlines, and images that have an address alone take its last part as their file name.
Every reader of the package begins here, so that what one of them accepts every other accepts, with
the same numbers. The parsed file is never changed: an odd entry is copied, a sound one is passed on
as it is, and a sound column costs one look at the types in it.
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
MAX_DIGITS = 40  # of a number written as a text
ADDRESSES = ('coco_url', 'url', 'flickr_url', 'path')  # of an image without a file_name
ODD_SIGNS = frozenset('\\%:?')  # of paths of other machines, encoded ones, addresses


class Correction(NamedTuple):
    """Entries that are read for what they mean, and not as they are written.

    Without a ``fix`` they are read as they stand, and what they mean cannot be said in COCO JSON.
    """

    code: str
    text: str
    ids: list[Any]
    fix: str = ''

    def __str__(self) -> str:
        fix = f' -> {self.fix}' if self.fix else ''
        return f'{self.text}: {find(self.ids)}{fix}'


def tidy(dataset: Entry, source: str) -> tuple[Entry, list[Correction]]:
    """Read a parsed file for what it means.

    Args:
        dataset: A parsed file; it is not changed. Lists and entries may be of any kind: what is
            wrong with them is left to the checks that follow.
        source: The file's name for messages.

    Returns:
        The file as it is meant, and what was read otherwise than it is written.

    Raises:
        DataError: It is of another format: COCO panoptic JSON, or a labelling tool's own.
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
    """Name a file of another format for what it is.

    Raises:
        DataError: It is one.
    """
    entries = dataset.get('annotations')
    first = entries[0] if isinstance(entries, list) and entries else None
    if isinstance(first, dict) and isinstance(first.get('segments_info'), list):
        raise DataError(
            f'{source} is COCO panoptic JSON (its annotations hold "segments_info"): give the '
            'instances file of the same images, or make an annotation with a bbox of each segment.'
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
    """Return the number that a text shows; anything else as it is."""
    if not isinstance(value, str) or len(value) > MAX_DIGITS:
        return value
    text = value.strip()
    if not re.fullmatch(NUMBER, text):
        return value
    return int(text) if re.fullmatch(r'[+-]?\d+', text) else float(text)


def box_from_text(value: Any) -> Any:
    """Return a box whose numbers are texts, or that is one text, as numbers."""
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
    """Apply a reader of texts to fields; an entry is copied where a value changes."""
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
        text = f'{" or ".join(fields)} of {key} written as texts'
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
    """Give images without a file_name the last part of their address."""
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
        text = 'images without a file_name that have an address'
        changes.append(Correction('images.address', text, ids, 'its last part is their file_name'))
    return named


def path_tails(name: str) -> list[str]:
    r"""Return what a stored path may mean on this machine, the longest first.

    >>> path_tails('https://host/val/My%20cat.png')
    ['val/My cat.png', 'My cat.png']
    >>> path_tails(r'..\images\7.png')
    ['images/7.png', '7.png']
    """
    text = name
    if '://' in name or '?' in name:
        try:
            parts = urlsplit(name)
            stored = parse_qs(parts.query).get('d')  # as Label Studio writes local files
        except ValueError:  # a part in square brackets that is not an address
            return []
        text = stored[0] if stored else parts.path
    steps = [each for each in unquote(text).replace('\\', '/').split('/') if each not in ('', '.')]
    if '..' in steps:
        steps = steps[len(steps) - steps[::-1].index('..') :]
    return ['/'.join(steps[index:]) for index in range(len(steps))]


def _outline_boxes(annotations: list[Any], changes: list[Correction]) -> list[Any]:
    """Give annotations without a box of four numbers the box of their outline."""
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
        text = 'annotations without a box that have an outline'
        changes.append(Correction('boxes.outline', text, ids, 'the box of the outline'))
    return made


def outline_box(segmentation: Any) -> list[float] | None:
    """Return the xywh box of polygons or of a mask in COCO's run lengths; None of anything else.

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
    """Return the box of a mask: its runs go down the columns and begin with the background."""
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
    first, last = ends[:-1:2], ends[1::2] - 1  # pixels of each run of the object
    there = last >= first[: len(last)]
    first, last = first[: len(last)][there], last[there]
    if not len(first):
        return None
    columns = first // height, last // height
    whole = columns[1] > columns[0]  # the run passes the foot of a column
    top = np.where(whole, 0, first % height).min()
    foot = np.where(whole, height - 1, last % height).max()
    left, right = columns[0].min(), columns[1].max()
    return [float(left), float(top), float(right - left + 1), float(foot - top + 1)]


def _decoded_runs(text: Any) -> list[int] | None:
    """Return the run lengths of COCO's compressed text: six bits a letter, five of them a digit.

    From the third run on, the difference to the one before the last is stored.
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
    """Join references to ids of the same value: "7" to 7, and 7 to "7"."""
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
        text = f'annotations whose {field} is an id of the {key} in another type'
        changes.append(Correction(f'annotations.{field}_type', text, found, 'joined by value'))
    return joined


def _tell_rotated(annotations: list[Any], changes: list[Correction]) -> None:
    """Tell boxes that CVAT turned: ``bbox`` holds the box before the turn."""
    ids = []
    for index, entry in enumerate(annotations):
        attributes = entry.get('attributes') if isinstance(entry, dict) else None
        turn = attributes.get('rotation') if isinstance(attributes, dict) else None
        degrees = None if turn is None else as_number(from_text(turn))
        if degrees is not None and degrees % 360 not in (0, 180):
            ids.append(_name(index, entry))
    if ids:
        text = (
            'boxes that are rotated (attributes.rotation), so that their bbox is not where the '
            'object is: export them unrotated, or as polygons'
        )
        changes.append(Correction('boxes.rotated', text, ids))


def _tell_lvis(images: list[Any], changes: list[Correction]) -> None:
    """Tell LVIS, whose images are labelled for some of the classes alone."""
    ids = [
        _name(index, image)
        for index, image in enumerate(images)
        if isinstance(image, dict) and image.get('not_exhaustive_category_ids') is not None
    ]
    if ids:
        text = (
            "LVIS annotations, whose images are not labelled for every class: COCO's metric takes "
            'right detections of the others for false ones'
        )
        changes.append(Correction('images.lvis', text, ids))


def _by_value(known: Iterable[Any]) -> dict[Any, Any]:
    """Return ids by the number that they are or show; those that two ids share are left out."""
    meant: dict[Any, Any] = {}
    shared = set()
    for each in known:
        value = from_text(each)
        if value in meant:
            shared.add(value)
        meant[value] = each
    return {value: each for value, each in meant.items() if value not in shared}


def _name(index: int, entry: Entry) -> Any:
    """Return an entry's id, or its place in the list where it has none."""
    return entry['id'] if is_id(entry.get('id')) else index


def find_file(folder: str, name: str) -> str | None:
    """Return the name below a folder of the file that is meant; None where there is none.

    Paths of other machines (with backslashes, ``%20``, an address of a storage) are found by their
    decoded ends, the longest first.
    """
    try:
        if os.path.isfile(os.path.join(folder, name)):
            return name
        tails = (tail for tail in path_tails(name) if os.path.isfile(os.path.join(folder, tail)))
        return next(tails, None)
    except (OSError, ValueError):  # no possible name of a file
        return None


def is_there(folder: str, name: str) -> bool:
    """Whether our data set will find an image."""
    if os.path.exists(os.path.join(folder, name)):
        return True
    return not ODD_SIGNS.isdisjoint(name) and find_file(folder, name) is not None


def renamed_files(folder: str, names: Iterable[str]) -> dict[str, str]:
    """Return the files that names with odd signs mean, where none has that name; each once."""
    listed = list(names)
    found = {name: find_file(folder, name) for name in listed if not ODD_SIGNS.isdisjoint(name)}
    return meant_once({n: file for n, file in found.items() if file not in (None, n)}, listed)


def meant_once(new: Mapping[str, str | None], listed: Iterable[str]) -> dict[str, str]:
    """Return those of the new names that no other image has or gets."""
    times = Counter(new.get(name, name) for name in set(listed))
    return {name: file for name, file in new.items() if file is not None and times[file] == 1}
