"""Checks of the image files of an annotation file: existence, readability and size."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from gfl_det.datasets.annotations import ROUNDING_PX, Entry, as_number, is_size, shown
from gfl_det.datasets.checks.draft import WITH_BOXES, Draft
from gfl_det.datasets.images import dark_floats, decode, is_torn
from gfl_det.datasets.tidying import find_file, meant_once
from gfl_det.utils.console import Progress
from gfl_det.utils.pixels import MAX_PIXELS, header_of

Size = tuple[int, int]  # width and height, px


class Look(NamedTuple):
    """Properties of an image file."""

    fault: str | None = None
    size: Size | None = None  # as decoded
    orientation: int = 1  # EXIF orientation; 1: as stored


def check_present(draft: Draft, folder: str) -> None:
    """Check that each image's file exists; each folder is listed once.

    Args:
        draft: Draft with file names.
        folder: Folder of the images.
    """
    by_folder: dict[str, list[tuple[str, Entry]]] = defaultdict(list)
    for image in draft.images:
        place, name = os.path.split(image['file_name'])
        by_folder[place].append((name, image))
    missing = []
    unlisted = 0
    for place, members in by_folder.items():
        try:
            there = {
                item.name for item in os.scandir(os.path.join(folder, place)) if item.is_file()
            }
        except (OSError, ValueError):  # missing folder, or invalid name
            there = set()
        missing += [image for name, image in members if name not in there]
        unlisted += len(there - {name for name, _ in members})
    if missing:
        missing, found = _find_again(draft, folder, missing)
        unlisted -= found
    if missing:
        text = f'images that are not in {folder}'
        ids = [image['id'] for image in missing]
        draft.tell('error', 'images.missing', text, ids, WITH_BOXES)
        draft.remove_images(ids)
    if unlisted > 0:
        draft.tell('note', 'images.unlisted', f'files missing in the annotations: {unlisted}')


def _find_again(draft: Draft, folder: str, missing: list[Entry]) -> tuple[list[Entry], int]:
    """Rename entries to existing files that match the end of their path; return the others."""
    names = [image['file_name'] for image in draft.images]
    lost = [image['file_name'] for image in missing]
    found_names = {name: find_file(folder, name) for name in lost}
    new = meant_once({old: file for old, file in found_names.items() if file != old}, names)
    found = {image['id'] for image in missing if image['file_name'] in new}
    if found:
        first = next(image['file_name'] for image in missing if image['file_name'] in new)
        text = (
            f'images whose file_name is a foreign path, a URL or encoded: '
            f'{shown(first)} is {shown(new[first])} in {folder}'
        )
        ids = [image['id'] for image in missing if image['id'] in found]
        draft.tell('warning', 'images.renamed', text, ids, 'renamed to the existing file')
        draft.images = [
            {**image, 'file_name': new[image['file_name']]} if image['id'] in found else image
            for image in draft.images
        ]
    return [image for image in missing if image['id'] not in found], len(found)


def check_decoded(
    draft: Draft, folder: str, workers: int, max_pixels: int = MAX_PIXELS, bar: bool = True
) -> None:
    """Decode every image and find unreadable images, wrong sizes and rotations.

    Args:
        draft: Draft with existing images.
        folder: Folder of the images.
        workers: Number of threads; decoders release the GIL.
        max_pixels: Larger images are rejected by their header, before memory is allocated.
        bar: Show progress.
    """
    ids_of = [image['id'] for image in draft.images]
    paths = [os.path.join(folder, image['file_name']) for image in draft.images]
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda path: look_at(path, max_pixels), paths)
        looks = list(_with_bar(found, len(paths)) if bar else found)
    faults: dict[str, list[Any]] = defaultdict(list)
    turned, lying, other, unknown = [], [], set(), []
    for image, look in zip(draft.images, looks):
        stated = _stated_size(image)
        if look.fault is not None:
            faults[look.fault].append(image['id'])
        elif stated is None:
            unknown.append(image['id'])
        elif look.size != stated and look.size == stated[::-1] and look.orientation != 1:
            lying.append(image['id'])
        elif look.size != stated:
            other.add(image['id'])
        elif look.orientation != 1:
            turned.append(image['id'])
    for fault, ids in faults.items():
        draft.tell('error', 'images.unreadable', f'images that {fault}', ids, WITH_BOXES)
    if lying:
        text = 'images rotated by EXIF on loading, with boxes for the unrotated image'
        draft.tell('error', 'images.turned', text, lying, WITH_BOXES)
    if turned:
        text = 'images rotated by EXIF on loading, with the size of the rotated image'
        draft.tell('note', 'images.exif', text, turned)
    draft.remove_images([each for ids in (*faults.values(), lying) for each in ids])
    true = {each: look.size for each, look in zip(ids_of, looks) if look.size is not None}
    _state_sizes(draft, {each: true[each] for each in unknown})
    _correct_sizes(draft, {each: size for each, size in true.items() if each in other})


def _stated_size(image: Entry) -> Size | None:
    """Return the stated size; None if it is missing or invalid."""
    width, height = (as_number(image.get(key)) for key in ('width', 'height'))
    if width is None or height is None or not (is_size(width) and is_size(height)):
        return None
    return round(width), round(height)


def _state_sizes(draft: Draft, sizes: dict[Any, Size]) -> None:
    """Add missing sizes from the images."""
    if not sizes:
        return
    text = 'images without a usable width and height'
    draft.tell('error', 'images.no_size', text, list(sizes), 'read from the images')
    draft.images = _with_sizes(draft.images, sizes)


def _with_sizes(images: list[Entry], sizes: dict[Any, Size]) -> list[Entry]:
    return [
        {**image, 'width': sizes[image['id']][0], 'height': sizes[image['id']][1]}
        if image['id'] in sizes
        else image
        for image in images
    ]


def _correct_sizes(draft: Draft, sizes: dict[Any, Size]) -> None:
    """Correct the size if the boxes fit the true size; otherwise remove the image."""
    if not sizes:
        return
    misfits = set()
    for entry in draft.annotations:
        size = sizes.get(entry['image_id'])
        if size is not None and _leaves(entry.get('bbox'), size):
            misfits.add(entry['image_id'])
    right = [each for each in sizes if each not in misfits]
    if right:
        text = 'images of another size than stated, with boxes that fit the true size'
        draft.tell('warning', 'images.size', text, right, 'size corrected')
        draft.images = _with_sizes(draft.images, sizes)
    if misfits:
        text = 'images of another size than stated, with boxes that exceed the true size'
        draft.tell('error', 'images.size_boxes', text, sorted(misfits, key=repr), WITH_BOXES)
        draft.remove_images(list(misfits))


def _leaves(box: Any, size: Size) -> bool:
    """Whether an xywh box ends outside the image; False for invalid boxes."""
    numbers = [as_number(each) for each in box] if isinstance(box, list) else []
    if len(numbers) != 4 or None in numbers:
        return False
    ends = np.array(numbers[:2], float) + np.array(numbers[2:], float)
    return bool((ends > np.array(size) + ROUNDING_PX).any())


def look_at(path: str, max_pixels: int = MAX_PIXELS) -> Look:
    """Read a file's header and decode it like training.

    Args:
        path: Path of the image file.
        max_pixels: Larger images are not decoded.
    """
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except OSError as error:
        return Look(f'cannot be read ({error.strerror})')
    if not content:
        return Look('are empty files')
    header = header_of(content)
    if header is not None and header.pixels > max_pixels:
        return Look(f'have more than {max_pixels:,} pixels')
    if is_torn(content):
        return Look('are truncated: their end is missing')
    picture = decode(content, header.pixels if header else 0)
    if picture is None:
        return Look('cannot be decoded')
    if dark_floats(content) is not None:
        return Look('hold floats from 0 to 1, which decode to black: multiply them by 255')
    height, width = picture.shape[:2]
    return Look(None, (width, height), header.orientation if header else 1)


def _with_bar(looks: Iterator[Look], total: int) -> Iterator[Look]:
    """Show progress as a bar in a terminal, otherwise as lines."""
    with Progress(total, 'images decoded') as bar:
        for look in looks:
            yield look
            bar.advance()
