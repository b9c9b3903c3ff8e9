"""Complete check of an annotation file.

Its class names are compared with a config's, and objects are counted per class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gfl_det.datasets.annotations import (
    Entry,
    add_absent,
    free_ids,
    listed,
    match_classes,
    parse,
    shown,
    with_nearest,
)
from gfl_det.datasets.checks.boxes import Table, check_boxes
from gfl_det.datasets.checks.draft import Draft, Finding, Level
from gfl_det.datasets.checks.image_files import check_decoded, check_present
from gfl_det.datasets.checks.structure import check_structure, start, start_columns
from gfl_det.datasets.columns import Columns, NotPlainError, read_columns
from gfl_det.errors import ConfigError, DataError
from gfl_det.utils.config import is_remote


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


class AnnotationSource(NamedTuple):
    """Annotation file with its settings from a config."""

    name: str  # of the split; empty for a single file
    path: str
    folder: str | None = None  # of the images
    classes: Sequence[str] | None = None
    further: Callable[[Draft, Table], None] | None = None  # additional check of the remaining boxes
    dataset: Entry | None = None  # content of a file in another format


class Decoding(NamedTuple):
    """Settings for decoding images."""

    workers: int
    max_pixels: int
    bar: bool = True


class Report(NamedTuple):
    """Result of a check."""

    source: AnnotationSource
    images: int  # in the file
    boxes: int
    classes: list[ClassCount]  # of the remaining boxes
    findings: list[Finding]
    seconds: float
    repaired: Entry | None  # None if the file could not be read, or no repair was asked for
    is_read: bool = True

    @property
    def errors(self) -> list[Finding]:
        """Return the findings that stop or spoil training."""
        return [finding for finding in self.findings if finding.level == 'error']

    def trained_classes(self) -> list[ClassCount]:
        """Return the counts but those of categories without a box that are no class.

        A category such as the super-category of an export is in the file, and not trained on.
        """
        names = self.source.classes
        return [each for each in self.classes if each.boxes or names is None or each.name in names]

    def result(self) -> Entry:
        """Return the repaired file.

        Raises:
            ConfigError: If the file could not be read.
            DataError: If no image or no category remains.
        """
        if self.repaired is None:
            raise ConfigError(f'{self.source.path} cannot be repaired: {self.findings[0].text}')
        for key, number in (('images', self.images), ('annotations', self.boxes)):
            if number and not self.repaired[key]:
                causes = '; '.join(str(each) for each in self.findings if 'removed' in each.fix)
                raise DataError(
                    f'{self.source.path} cannot be repaired: none of its {number} {key} would '
                    f'be left: {causes}.'
                )
        return self.repaired

    def as_json(self) -> dict[str, Any]:
        """Return everything but the repaired file, for other programs."""
        return {
            'split': self.source.name,
            'file': self.source.path,
            'images': self.images,
            'boxes': self.boxes,
            'classes': [count._asdict() for count in self.classes],
            'findings': [
                {**finding._asdict(), 'number': len(finding.ids)} for finding in self.findings
            ],
            'seconds': round(self.seconds, 2),
        }


def check_file(
    source: AnnotationSource, decoding: Decoding | None = None, repair: bool = True
) -> Report:
    """Read a file and run every check on it.

    Args:
        source: Annotation file.
        decoding: Settings to also decode the images; None: do not decode.
        repair: Make the repaired file too, which takes a dict per box. Without it and without
            decoding, a plain file is checked in columns: the same findings in a tenth of the time.

    Returns:
        Report, with a single finding for a file that is not COCO JSON.
    """
    begin = time.monotonic()
    if not repair and decoding is None and source.dataset is None:
        columns = read_columns(source.path)
        with suppress(NotPlainError):
            if columns is not None:
                draft = start_columns(columns, source.path)
                counts = len(draft.images), len(draft.annotations)
                classes = run(draft, source)
                seconds = time.monotonic() - begin
                return Report(source, *counts, classes, draft.findings, seconds, None)
    try:
        dataset = read(source.path) if source.dataset is None else source.dataset
        draft = start(dataset, source.path)
    except DataError as error:
        finding = Finding('error', 'file', str(error), [])
        seconds = time.monotonic() - begin
        return Report(source, 0, 0, [], [finding], seconds, None, is_read=False)
    counts = len(draft.images), len(draft.annotations)
    classes = run(draft, source, decoding)
    seconds = time.monotonic() - begin
    return Report(source, *counts, classes, draft.findings, seconds, draft.result())


def read(path: str) -> Entry:
    """Read and parse an annotation file.

    Raises:
        DataError: If the file cannot be read or is not a JSON object.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f'The annotation file {path} cannot be read ({error.strerror}): check the path.'
        ) from error
    return parse(content, path)


def run(
    draft: Draft, source: AnnotationSource, decoding: Decoding | None = None
) -> list[ClassCount]:
    """Run the checks in the order of their dependencies.

    Returns:
        Counts of each class among the remaining boxes.
    """
    is_local = source.folder is not None and not is_remote(source.folder)
    check_structure(draft, sizes_follow=is_local and decoding is not None)
    check_classes(draft, source.classes)
    if source.folder is not None and is_local:
        check_present(draft, source.folder)
        if decoding is not None and draft.images:
            check_decoded(draft, source.folder, *decoding)
    table = check_boxes(draft)
    if source.further is not None and draft.images:
        source.further(draft, table)
    return count_classes(draft, table, source.classes)


def check_annotations_alone(source: AnnotationSource, dataset: Entry | Columns) -> list[Finding]:
    """Run the fast checks before training, which need neither images nor priors.

    Args:
        source: Annotation file.
        dataset: Content of the file, parsed or in columns; not modified.

    Returns:
        Findings.

    Raises:
        DataError: If the file is not COCO JSON.
    """
    alone = source._replace(folder=None, further=None)
    if isinstance(dataset, Columns):
        with suppress(NotPlainError):
            draft = start_columns(dataset, source.path)
            run(draft, alone)
            return draft.findings
        dataset = read(source.path)
    draft = start(dataset, source.path)
    run(draft, alone)
    return draft.findings
