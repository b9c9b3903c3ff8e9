"""Detection of a data set's format, splits and classes from its path.

When pictures are split off for validation, near copies stay in the same split: video frames or
augmented copies of training pictures would make the validation meaningless. Pictures are near
copies if their names say so (``a_jpg.rf.1.jpg`` and ``a_jpg.rf.2.jpg``) or if their brightness, on
a grid of 9 x 8 cells, rises and falls in the same places.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy
from PIL import Image

from gfl_det.datasets.annotations import Entry, free_ids, parse
from gfl_det.datasets.formats.pictures import DataPart, OwnData, pictures_below, some_of
from gfl_det.datasets.formats.voc import holds_voc, read_voc
from gfl_det.datasets.formats.yolo import read_yolo, refuse_without_yaml, yaml_of
from gfl_det.datasets.table import check_lists
from gfl_det.datasets.tidying import find_file, is_there, tidy
from gfl_det.errors import DataError
from gfl_det.utils.files import write_json

SPLITS = {'train': ('train',), 'val': ('val', 'valid', 'validation'), 'test': ('test',)}
EXPORTED = '_annotations.coco.json'  # file name used by labelling services
GIVE = (
    'give a COCO folder (train.json and val.json, or train/_annotations.coco.json), one COCO JSON, '
    'a YOLO data.yaml, or a VOC folder'
)
SAMPLED = 20  # pictures of a file that are looked up to find their folder
VAL_SHARE = 0.2  # share of the training pictures, if there is no validation split
SEED = 0


def read_own(path: str | Path, image_dir: str | Path | None = None) -> OwnData:
    """Read a data set.

    Args:
        path: Folder or file.
        image_dir: Picture folder of a COCO JSON, if it is neither the file's folder nor ``images``.

    Returns:
        The data set with a training and a validation split. If there is no validation split, a
        fifth of the training pictures is split off, keeping near copies together.

    Raises:
        DataError: If the path is not a data set, or cannot be read.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f'{source} does not exist: {GIVE}.')
    data = _read_file(source, image_dir) if source.is_file() else _read_folder(source, image_dir)
    if 'train' not in data.parts:
        raise DataError(f'{source} has no pictures to train on, but only {some_of(data.parts)}.')
    return data if 'val' in data.parts else with_validation(data)


def _read_file(source: Path, image_dir: str | Path | None) -> OwnData:
    if source.suffix in ('.yaml', '.yml'):
        return read_yolo(source)
    if source.suffix == '.json':
        return _coco(source, dict(train=source), image_dir)
    raise DataError(f'{source} is no data set: {GIVE}.')


def _read_folder(folder: Path, image_dir: str | Path | None) -> OwnData:
    file = yaml_of(folder)
    if file is not None:
        return read_yolo(file)._replace(source=folder)
    files = {split: file for split in SPLITS if (file := _json_of(folder, split))}
    if 'train' in files:
        return _coco(folder, files, image_dir)
    if holds_voc(folder):
        return read_voc(folder)
    jsons = sorted(
        path for place in (folder, folder / 'annotations') for path in place.glob('*.json')
    )
    if len(jsons) == 1:
        return _coco(folder, dict(train=jsons[0]), image_dir)
    if jsons:
        raise DataError(
            f'{folder} has several JSONs ({some_of(path.name for path in jsons)}), none of them '
            'named for training: give one, or name them train.json and val.json.'
        )
    refuse_without_yaml(folder)
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and holds_voc(path)]
    if len(inner) == 1:
        return read_voc(inner[0])._replace(source=folder)
    if inner:
        raise DataError(f'{folder} has several VOC folders: give one of {some_of(inner)}.')
    what = 'pictures without labels' if pictures_below(folder) else 'no data set'
    raise DataError(f'{folder} holds {what}: {GIVE}.')


def _json_of(folder: Path, split: str) -> Path | None:
    """Find the COCO file of a split."""
    for name in SPLITS[split]:
        for pattern in (
            f'{name}/{EXPORTED}',
            f'{name}.json',
            f'annotations/{name}.json',
            f'instances_{name}*.json',
            f'annotations/instances_{name}*.json',
            f'{name}/*.json',
        ):
            found = sorted(folder.glob(pattern))
            if len(found) == 1:
                return found[0]
    return None


def _coco(source: Path, files: dict[str, Path], image_dir: str | Path | None) -> OwnData:
    root = source if source.is_dir() else source.parent
    notes: list[str] = []
    parts = {}
    for split, file in files.items():
        try:
            dataset = parse(file.read_bytes(), str(file))
        except OSError as error:
            raise DataError(f'{file} cannot be read: {error.strerror or error}.') from error
        dataset, _ = tidy(dataset, str(file))
        check_lists(dataset, str(file))
        folder = Path(image_dir) if image_dir else _image_folder(dataset, file, root, split)
        parts[split] = DataPart(dataset, folder.absolute(), file.absolute())
    names = [str(each.get('name', each['id'])) for each in parts['train'].dataset['categories']]
    dummies = _dummies([part.dataset for part in parts.values()])
    if dummies:
        notes.append(f'{some_of(dummies)} is a super-category without a box, and dropped')
    classes = [name for name in names if name not in dummies]
    return OwnData('COCO', source, classes, parts, notes)


def _dummies(datasets: list[Entry]) -> list[str]:
    """Return classes without boxes that are the super-category of others."""
    used: set[str] = set()
    parents: set[str] = set()
    names: list[str] = []
    for dataset in datasets:
        by_id = {each['id']: str(each.get('name', each['id'])) for each in dataset['categories']}
        names += by_id.values()
        used |= {
            by_id[each['category_id']]
            for each in dataset.get('annotations', [])
            if each['category_id'] in by_id
        }
        parents |= {
            str(each['supercategory'])
            for each in dataset['categories']
            if each.get('supercategory') not in (None, each.get('name'))
        }
    return [name for name in dict.fromkeys(names) if name in parents and name not in used]


def _image_folder(dataset: Entry, file: Path, root: Path, split: str) -> Path:
    """Find the folder of a COCO file's pictures.

    Raises:
        DataError: If none of the searched folders contains one of them.
    """
    images = dataset['images']
    step = max(1, len(images) // SAMPLED)
    names = [str(each.get('file_name') or '') for each in images[::step][:SAMPLED]]
    tried = list(dict.fromkeys(_image_folders(file, root, split)))
    found = [sum(bool(name) and is_there(str(each), name) for name in names) for each in tried]
    if names and not any(found):
        raise DataError(
            f'{file}: its pictures ({some_of(names, 1)}) are in none of {some_of(tried, 4)}: say '
            'where with --image-dir.'
        )
    return tried[found.index(max(found))]


def _image_folders(file: Path, root: Path, split: str) -> Iterator[Path]:
    above = file.parent
    stems = (file.stem, file.stem.removeprefix('instances_'), *SPLITS[split])
    yield from (above, above / 'images')
    for base in dict.fromkeys((root, above.parent)):
        for stem in stems:
            yield from (base / stem, base / 'images' / stem, base / stem / 'images')
        yield from (base / 'images', base / 'data', base)


def with_validation(data: OwnData) -> OwnData:
    """Split off a part of the training pictures for validation.

    Raises:
        DataError: If there are fewer than two groups of near copies.
    """
    dataset, folder, _ = data.parts['train']
    images = dataset['images']
    names = [str(each.get('file_name') or each['id']) for each in images]
    groups = group_near_copies([folder / (find_file(str(folder), name) or name) for name in names])
    rows = split_groups(groups, names, VAL_SHARE, SEED)
    if not all(rows):
        raise DataError(
            f'{data.source}: its {len(images)} pictures are copies of one, and none can be set '
            'apart to validate on: give more pictures.'
        )
    parts = {}
    for split, chosen in zip(('train', 'val'), rows):
        kept = [images[row] for row in chosen]
        ids = {each['id'] for each in kept}
        entries = [each for each in dataset.get('annotations', []) if each['image_id'] in ids]
        parts[split] = DataPart(dict(dataset, images=kept, annotations=entries), folder)
    copies = len(names) - len(set(groups))
    note = (
        f'no validation split: {len(rows[1])} of {len(names)} pictures are set apart (seed {SEED}'
        f'{f"; {copies} near copies stay with their like" if copies else ""})'
    )
    return data._replace(parts={**data.parts, **parts}, notes=[*data.notes, note])


def in_order(data: OwnData, classes: Sequence[str]) -> OwnData:
    """Return the data set with its categories in the order of a detector's classes.

    Metrics map labels to categories in the order of the file. Ids do not change, missing classes
    are added, and changed files are written by `write_parts`.

    Args:
        data: Data set.
        classes: Classes of the detector; the other classes of the data set follow.
    """
    place = {name: index for index, name in enumerate(classes)}

    def rank(category: Entry) -> int:
        return place.get(str(category.get('name', category['id'])), len(place))

    parts = {}
    for split, part in data.parts.items():
        old = part.dataset['categories']
        absent = [name for name in classes if name not in [str(each.get('name')) for each in old]]
        ids = free_ids([each['id'] for each in old], len(absent))
        added = [dict(id=free, name=name) for free, name in zip(ids, absent)]
        categories = sorted([*old, *added], key=rank)
        if categories != old:
            part = DataPart({**part.dataset, 'categories': categories}, part.folder)
        parts[split] = part
    names = sorted(data.classes, key=lambda name: place.get(name, len(place)))
    return data._replace(classes=names, parts=parts)


def write_parts(data: OwnData, folder: Path) -> OwnData:
    """Write the splits that are not yet in COCO files; pictures are not moved.

    Args:
        data: Data set.
        folder: Output folder of ``train.json`` and the others.
    """
    parts = {}
    for split, part in data.parts.items():
        file = part.file
        if file is None:
            file = (folder / f'{split}.json').absolute()
            write_json(file, part.dataset)
        parts[split] = part._replace(file=file)
    return data._replace(parts=parts)


# --- Random split that keeps near copies together -------------------------------------------------

COPY_MARK = re.compile(r'\.rf\.[0-9a-zA-Z]{8,}$')  # Roboflow's suffix of picture names
GRID = (9, 8)
BITS = 64
MOST_DIFFERENT = 7  # of 64 bits between near copies; other photographs differ in 31, at least in 11
BAND_BITS = 8  # near copies agree completely in at least one of eight bands
FLAT = 8  # with fewer unequal comparisons, a picture is too uniform to be recognised


def group_near_copies(paths: Sequence[Path]) -> list[int]:
    """Return the group of each picture, identified by the index of its first member.

    Args:
        paths: Files of N pictures; a file that cannot be decoded forms a separate group.
    """
    pairs: list[tuple[int, int]] = []
    by_name: dict[str, int] = {}
    for index, path in enumerate(paths):
        if COPY_MARK.search(path.stem):
            pairs.append((by_name.setdefault(COPY_MARK.sub('', path.stem), index), index))
    signs = [sign_of(path) for path in paths]
    known = np.array([index for index, sign in enumerate(signs) if sign is not None], int)
    bits = np.array([signs[index] for index in known], np.uint8).reshape(-1, BITS)
    for start in range(0, BITS, BAND_BITS):
        bands = defaultdict(list)
        packed = np.packbits(bits[:, start : start + BAND_BITS], axis=1)
        for row, band in enumerate(packed):
            bands[band.tobytes()].append(row)
        for rows in bands.values():
            for place, row in enumerate(rows[:-1]):
                others = np.array(rows[place + 1 :])
                different = (bits[others] != bits[row]).sum(1)
                alike = others[different <= MOST_DIFFERENT]
                pairs += [(known[row], other) for other in known[alike]]
    ends = np.array(pairs, int).reshape(-1, 2).T
    graph = scipy.sparse.coo_array(
        (np.ones(len(pairs)), tuple(ends)), shape=(len(paths), len(paths))
    )
    _, group = scipy.sparse.csgraph.connected_components(graph, directed=False)
    _, first = np.unique(group, return_index=True)
    return first[group].tolist()


def sign_of(path: Path) -> np.ndarray | None:
    """Mask (64,) of cells brighter than their right neighbours; None for uniform pictures."""
    try:
        with Image.open(path) as picture:
            picture.draft('L', (16 * GRID[0], 16 * GRID[1]))  # decodes JPEGs at a small size
            grid = np.asarray(picture.convert('L').resize(GRID, Image.Resampling.BOX), int)
    except Exception:  # damaged or oversized files raise any error; the data checks report them
        return None
    steps = grid[:, :-1] - grid[:, 1:]
    return None if (steps != 0).sum() < FLAT else (steps > 0).ravel()


def split_groups(
    groups: Sequence[int], keys: Sequence[str], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split into two parts, keeping the members of a group together.

    The result depends only on the seed and the names.

    Args:
        groups: Group of each of N pictures.
        keys: Names of the pictures.
        share: Share of the second part, as closely as the groups allow; with two or more groups
            neither part is empty.
        seed: Seed of the split.

    Returns:
        Ascending indices of the first and the second part.

    Example:
        >>> split_groups([0, 0, 2, 3, 4], ['a', 'b', 'c', 'd', 'e'], 0.4, seed=0)
        ([0, 1, 3], [2, 4])
    """
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    first_key = {group: min(keys[index] for index in found) for group, found in members.items()}
    order = sorted(
        members, key=lambda group: hashlib.sha256(f'{seed} {first_key[group]}'.encode()).digest()
    )
    wanted = share * len(keys)
    second: set[int] = set()
    for group in order[:-1]:
        size, lacking = len(members[group]), wanted - len(second)
        if size <= lacking or (not second and size < len(keys) / 2):
            second |= set(members[group])
        if len(second) >= wanted:
            break
    return [i for i in range(len(keys)) if i not in second], sorted(second)
