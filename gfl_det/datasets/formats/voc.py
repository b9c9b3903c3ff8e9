"""VOC data sets: an XML file of boxes per picture, with or without lists of splits.

Either ``Annotations/``, ``JPEGImages/`` and ``ImageSets/Main/*.txt`` as in Pascal VOC, or pictures
and XMLs together in ``train/``, ``valid/`` and ``test/`` as exported by labelling services.
Corners are used unchanged: width is ``xmax - xmin``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from gfl_det.datasets.formats.pictures import (
    DataPart,
    LabelledBox,
    LabelledPicture,
    OwnData,
    as_part,
    is_picture,
    picture_size,
    pictures_below,
    some_of,
)
from gfl_det.errors import DataError

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
LISTS = {'train': ('train', 'trainval'), 'val': ('val', 'valid'), 'test': ('test',)}
FOLDERS = {'train': ('train',), 'val': ('val', 'valid', 'validation'), 'test': ('test',)}
MOST_BYTES = 10_000_000  # size limit of an XML file


class VocObject(NamedTuple):
    """Object in an XML file."""

    name: str
    corners: tuple[float, float, float, float]  # xyxy px
    difficult: bool


def holds_voc(folder: Path) -> bool:
    """Whether a folder or its split folders contain VOC's XML files."""
    return any(_xml_folders(folder).values())


def read_voc(folder: Path) -> OwnData:
    """Read a VOC data set.

    Args:
        folder: Folder that contains ``Annotations`` or split folders.

    Raises:
        DataError: If an XML is invalid, a picture is missing, or nothing is listed.
    """
    notes: list[str] = []
    files = _listed(folder, notes) or _xml_folders(folder)
    read = {split: [_read_xml(path) for path in paths] for split, paths in files.items() if paths}
    names = {each.name for rows in read.values() for objects in rows for each in objects}
    if not names:
        raise DataError(f'{folder}: none of its XMLs has an object: label some.')
    classes = sorted(names)
    parts = {}
    for split, rows in read.items():
        parts[split] = _part(folder, files[split], rows, classes)
        difficult = sum(each.difficult for objects in rows for each in objects)
        if difficult:
            notes.append(
                f'{split}: {difficult} boxes marked "difficult" are neither trained on nor judged'
            )
    return OwnData('VOC', folder, classes, parts, notes)


def read_list(file: Path, xmls: Path, pictures: Path, classes: Sequence[str]) -> DataPart:
    """Read the pictures of one list of names.

    Args:
        file: List with one name per line.
        xmls: Folder of the XMLs.
        pictures: Folder that contains the pictures, possibly in subfolders.
        classes: First classes, in order; other classes found follow.

    Raises:
        DataError: If the list or an XML is invalid or missing.
    """
    try:
        names = [line.split()[0] for line in file.read_text(encoding='utf-8').splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{file} cannot be read: {error}.') from error
    paths = [xmls / f'{name}.xml' for name in names]
    rows = [_read_xml(path) for path in paths]
    found = {each.name for objects in rows for each in objects}
    return _part(pictures, paths, rows, [*classes, *sorted(found - set(classes))])


def _part(
    folder: Path, xmls: Sequence[Path], rows: Sequence[list[VocObject]], classes: Sequence[str]
) -> DataPart:
    places, label = _Pictures(folder, xmls), {name: index for index, name in enumerate(classes)}
    pictures = []
    for xml, objects in zip(xmls, rows):
        path = places.of(xml)
        boxes = [
            LabelledBox(label[each.name], _xywh(each.corners), each.difficult) for each in objects
        ]
        pictures.append(LabelledPicture(path, picture_size(path), boxes))
    return as_part(pictures, classes)


def _xml_folders(folder: Path) -> dict[str, list[Path]]:
    """Return the XMLs of each split from its folder; without split folders, all are train."""
    for root in (folder / 'Annotations', folder):
        found = {}
        for split, names in FOLDERS.items():
            place = next((root / name for name in names if (root / name).is_dir()), None)
            paths = sorted(place.rglob('*.xml')) if place else []
            if paths:
                found[split] = paths
        if 'train' in found:
            return found
    for name in ('Annotations', 'annotations', '.'):
        paths = sorted((folder / name).glob('*.xml'))
        if paths:
            return dict(train=paths)
    return {}


def _listed(folder: Path, notes: list[str]) -> dict[str, list[Path]]:
    """Return the XMLs of the lists in ``ImageSets/Main``; empty if there are no lists."""
    lists = folder / 'ImageSets' / 'Main'
    found: dict[str, list[Path]] = {}
    for split, names in LISTS.items():
        file = next(
            (lists / f'{name}.txt' for name in names if (lists / f'{name}.txt').is_file()), None
        )
        if file is None:
            continue
        stems = [
            line.split()[0]
            for line in file.read_text(encoding='utf-8').splitlines()
            if line.strip()
        ]
        paths = [folder / 'Annotations' / f'{stem.removesuffix(".xml")}.xml' for stem in stems]
        there = [path for path in paths if path.is_file()]
        if len(there) < len(paths):
            absent = some_of(path.name for path in paths if not path.is_file())
            if split == 'train':
                raise DataError(
                    f'{file} lists XMLs that are not in {folder}/Annotations: {absent}.'
                )
            notes.append(f'{split}: {len(paths) - len(there)} pictures without an XML are left out')
        if there:
            found[split] = there
    return found if 'train' in found else {}


def _read_xml(path: Path) -> list[VocObject]:
    """Read the objects of an XML file.

    Raises:
        DataError: If the file is invalid.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error
    if len(content) > MOST_BYTES or b'<!DOCTYPE' in content or b'<!ENTITY' in content:
        raise DataError(f'{path} is larger than VOC annotations are, or defines entities: refused.')
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f'{path} is not valid XML: {error}.') from error
    return [
        _object(each, path, number) for number, each in enumerate(root.findall('object'), start=1)
    ]


def _object(node: ElementTree.Element, path: Path, number: int) -> VocObject:
    name = (node.findtext('name') or '').strip()
    texts = [node.findtext(f'bndbox/{key}') for key in CORNERS]
    try:
        xmin, ymin, xmax, ymax = (float(text or '') for text in texts)
    except ValueError:
        name = ''
    if not name:
        raise DataError(
            f'{path}: object {number} lacks a name or the four numbers of a bndbox '
            f'({", ".join(CORNERS)}): add them.'
        )
    difficult = (node.findtext('difficult') or '0').strip() not in ('', '0', 'Unspecified')
    return VocObject(name, (xmin, ymin, xmax, ymax), difficult)


def _xywh(corners: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = corners
    return (left, top, right - left, bottom - top)


class _Pictures:
    """Lookup of an XML's picture by file name, in the same folder or in the picture folders.

    The name inside the XML is ignored: after files are renamed, it may refer to another picture.
    """

    def __init__(self, folder: Path, xmls: Sequence[Path]) -> None:
        self.folder = folder
        self.beside: dict[Path, dict[str, Path]] = {}
        wanted = {path.stem for path in xmls}
        self.below = {path.stem: path for path in pictures_below(folder) if path.stem in wanted}

    def of(self, xml: Path) -> Path:
        """Return the picture.

        Raises:
            DataError: If there is no picture.
        """
        if xml.parent not in self.beside:
            there = (path for path in xml.parent.iterdir() if is_picture(path))
            self.beside[xml.parent] = {path.stem: path for path in there}
        found = self.beside[xml.parent].get(xml.stem) or self.below.get(xml.stem)
        if found is None:
            raise DataError(
                f'{xml} has no picture of its name below {self.folder}: add it, or remove the XML.'
            )
        return found
