"""Class names of an annotation file compared with a config's, and counts per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gfl_det.datasets.annotations import (
    add_absent,
    free_ids,
    listed,
    match_classes,
    shown,
    with_nearest,
)
from gfl_det.datasets.checks.boxes import Table
from gfl_det.datasets.checks.draft import Draft, Level
from gfl_det.errors import DataError


class ClassCount(NamedTuple):
    """Number of boxes and images of a class."""

    name: str
    boxes: int  # including crowds
    images: int


def check_classes(draft: Draft, classes: Sequence[str] | None) -> None:
    """Compare the categories with the classes of a config.

    A repaired file takes the config's order, and its spelling of names that differ only in
    capitals, spaces or punctuation.

    Args:
        draft: Draft with valid categories.
        classes: Names in ``metainfo``; None skips the check.
    """
    if classes is None:
        return
    in_file = [category['name'] for category in draft.categories]
    new = {}
    lost = []
    for name in classes:
        if name in in_file:
            continue
        alike = [
            other for other in in_file if other not in classes and _plain(other) == _plain(name)
        ]
        if len(alike) == 1:
            new[alike[0]] = name
        else:
            lost.append(name)
    if new:
        pairs = ', '.join(f'{old!r} for {name!r}' for old, name in new.items())
        text = f'the file spells classes differently than the config: {pairs}'
        draft.tell('error', 'classes.spelling', text, fix='renamed as in the config')
        draft.categories = [
            {**each, 'name': new.get(each['name'], each['name'])} for each in draft.categories
        ]
    if lost and len(lost) < len(classes) and _are_new(lost, [*in_file, *new.values()], classes):
        text = f'classes of the config missing in the file: {listed(lost)}'
        completed, absent = add_absent(draft.categories, classes)
        level: Level = 'warning' if absent else 'error'  # training needs clearly absent ones
        draft.tell(level, 'classes.absent', text, fix='added, without a box')
        ids = free_ids([each['id'] for each in draft.categories], len(lost))
        new_ones = [dict(id=new_id, name=name) for new_id, name in zip(ids, lost)]
        draft.categories = completed if absent else [*draft.categories, *new_ones]
        lost = []
    if lost:
        hints = ', '.join(with_nearest(name, in_file) for name in lost[:10])
        more = f' and {len(lost) - 10} more' if len(lost) > 10 else ''
        text = (
            f'the file has no class {hints}{more}; the config lists {listed(list(classes))}, the '
            f'file {listed(in_file)}: make the names match'
        )
        draft.tell('error', 'classes.unknown', text)
        return
    _check_order(draft, classes)
    unused = [each['id'] for each in draft.categories if each['name'] not in set(classes)]
    if unused:
        text = 'categories that the config does not train on'
        draft.tell('note', 'classes.unused', text, unused)


def count_classes(draft: Draft, table: Table, classes: Sequence[str] | None) -> list[ClassCount]:
    """Count boxes and images per class, and report images and classes without boxes.

    Args:
        draft: Draft after all checks.
        table: Boxes of the draft.
        classes: Names of the trained classes; None for all.

    Returns:
        Counts of each category, in order.
    """
    number = len(draft.categories)
    boxes = np.bincount(table.label, minlength=number)
    pairs = np.sort(table.image * max(number, 1) + table.label)
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]
    images = np.bincount(pairs % max(number, 1), minlength=number)
    names = [category['name'] for category in draft.categories]
    wanted = np.array([classes is None or name in set(classes) for name in names], bool)
    bare = [names[i] for i in np.flatnonzero((boxes == 0) & wanted)]
    if bare:
        draft.tell('warning', 'classes.empty', f'classes without a box: {listed(bare)}')
    trained = wanted[table.label] & ~table.crowd if number else np.zeros(0, bool)
    filled = np.bincount(table.image[trained], minlength=len(draft.images)) > 0
    empty = [draft.images[row]['id'] for row in np.flatnonzero(~filled)]
    if draft.images and not filled.any():
        draft.tell('error', 'boxes.none', 'no box to train on remains')
    elif empty:
        text = f'images without a box, of {len(draft.images)}: used as background'
        draft.tell('note', 'images.empty', text, empty)
    if not draft.images:
        draft.tell('error', 'images.none', 'no image remains')
    crowds = int(table.crowd.sum())
    if crowds:
        draft.tell('note', 'boxes.crowd', f'boxes of crowds, not trained on: {crowds}')
    return [ClassCount(*row) for row in zip(names, boxes.tolist(), images.tolist())]


def _are_new(lost: Sequence[str], in_file: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether no additional name of the file can be a variant of a lost name."""
    others = [name for name in in_file if name not in set(classes)]
    return not any(with_nearest(name, others) != shown(name) for name in lost)


def _check_order(draft: Draft, classes: Sequence[str]) -> None:
    try:
        match_classes(list(classes), draft.categories, draft.source)
    except DataError:
        order = {name: place for place, name in enumerate(classes)}
        names = [each['name'] for each in draft.categories if each['name'] in order]
        text = (
            f'the file orders its classes {listed(names)}, the config {listed(list(classes))}: '
            'mmdet uses the order of the file'
        )
        draft.tell('error', 'classes.order', text, fix='put in the order of the config')
        draft.categories = sorted(
            draft.categories, key=lambda each: order.get(each['name'], len(order))
        )


def _plain(name: str) -> str:
    return ''.join(letter for letter in name.casefold() if letter.isalnum())
