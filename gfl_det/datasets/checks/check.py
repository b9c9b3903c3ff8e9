"""The whole check of one annotation file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gfl_det.datasets.annotations import Entry, parse
from gfl_det.datasets.checks.boxes import Table, check_boxes
from gfl_det.datasets.checks.classes import ClassCount, check_classes, count_classes
from gfl_det.datasets.checks.draft import Draft, Finding
from gfl_det.datasets.checks.image_files import check_decoded, check_present
from gfl_det.datasets.checks.structure import check_structure, start
from gfl_det.errors import ConfigError, DataError
from gfl_det.utils.config import is_remote


class AnnotationSource(NamedTuple):
    """An annotation file and what a config says of it."""

    name: str  # of the split; empty for a file alone
    path: str
    folder: str | None = None  # of the images
    classes: Sequence[str] | None = None
    further: Callable[[Draft, Table], None] | None = None  # a check of what is left
    dataset: Entry | None = None  # the content, of a file that is no COCO JSON


class Decoding(NamedTuple):
    """How images are decoded."""

    workers: int
    max_pixels: int
    bar: bool = True


class Report(NamedTuple):
    """What a check found."""

    source: AnnotationSource
    images: int  # in the file
    boxes: int
    classes: list[ClassCount]  # of what is left
    findings: list[Finding]
    seconds: float
    repaired: Entry | None  # None where the file could not even be read

    @property
    def errors(self) -> list[Finding]:
        """Those that stop a training or spoil it."""
        return [finding for finding in self.findings if finding.level == 'error']

    def result(self) -> Entry:
        """Return the repaired file.

        Raises:
            ConfigError: There is none.
            DataError: Nothing is left in it.
        """
        if self.repaired is None:
            raise ConfigError(f'{self.source.path} cannot be repaired: {self.findings[0].text}')
        for key, number in (('images', self.images), ('annotations', self.boxes)):
            if number and not self.repaired[key]:
                causes = '; '.join(str(each) for each in self.findings if 'removed' in each.fix)
                raise DataError(
                    f'{self.source.path} cannot be repaired, for none of its {number} {key} would '
                    f'be left: {causes}.'
                )
        return self.repaired

    def as_json(self) -> dict[str, Any]:
        """Everything but the repaired file, for other programs."""
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


def check_file(source: AnnotationSource, decoding: Decoding | None = None) -> Report:
    """Read a file and run every check on it.

    Args:
        source: The file.
        decoding: Also decode the images.

    Returns:
        The report; a file that is not a COCO file has one finding.
    """
    begin = time.monotonic()
    try:
        dataset = read(source.path) if source.dataset is None else source.dataset
        draft = start(dataset, source.path)
    except DataError as error:
        finding = Finding('error', 'file', str(error), [])
        return Report(source, 0, 0, [], [finding], time.monotonic() - begin, None)
    counts = len(draft.images), len(draft.annotations)
    classes = run(draft, source, decoding)
    seconds = time.monotonic() - begin
    return Report(source, *counts, classes, draft.findings, seconds, draft.result())


def read(path: str) -> Entry:
    """Read and parse an annotation file.

    Raises:
        DataError: It cannot be read, or is not a JSON object.
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
    """Run the checks in the order in which they rest on each other.

    Returns:
        How often each class occurs in what is left.
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


def check_annotations_alone(source: AnnotationSource, dataset: Entry) -> list[Finding]:
    """Run what needs no image and no prior: the fast part, before a training.

    Args:
        source: The file.
        dataset: Its content; it is not changed.

    Returns:
        The findings.

    Raises:
        DataError: It is not a COCO file.
    """
    draft = start(dataset, source.path)
    run(draft, source._replace(folder=None, further=None))
    return draft.findings
