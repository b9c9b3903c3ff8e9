"""Embedded data set of real handwritten digits in synthetic scenes, as COCO JSON and PNG files.

The scans are scikit-learn's ``load_digits`` (E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, CC BY 4.0), part of every installation.
Training and validation images show different scans. The same seed gives the same bytes with the
same versions of NumPy (random streams) and OpenCV (PNG encoder), for any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from gfl_det.datasets.digits.scenes import DigitObject, ScanSet, SceneRecipe, draw_scene
from gfl_det.errors import DataError

CLASSES = tuple('0123456789')
SPLITS = ('train', 'val')
GENERATOR = 'gfl_det digits'
VERSION = 1  # increase it when the same recipe gives other images
SCANS_LICENCE = 'CC BY 4.0: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI'
SCANS_URL = 'https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits'
MIN_PARALLEL = 32  # fewer images are drawn faster than processes start
PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 4]


@dataclass(frozen=True)
class DigitsRecipe:
    """All settings that determine the bytes: counts, seed, fraction of scans for val, scenes."""

    train: int = 1000
    val: int = 200
    seed: int = 0
    val_share: float = 0.25
    scene: SceneRecipe = field(default_factory=SceneRecipe)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the recipe and the generator's version."""
        text = json.dumps({'version': VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Picture(NamedTuple):
    """Written image: number from 1, file name, file size in bytes, digits."""

    number: int
    file_name: str
    bytes: int
    objects: list[DigitObject]


class DigitsSummary(NamedTuple):
    """Content of a data set's folder: images and boxes per split, built now or found."""

    root: Path
    images: dict[str, int]
    boxes: dict[str, int]
    built: bool


def load_scans() -> ScanSet:
    """Load all 1,797 scans; an id is the scan's position in ``load_digits``."""
    from sklearn.datasets import load_digits  # slow to import and only needed here

    digits = load_digits()
    return ScanSet(digits.images.astype(np.uint8), digits.target, np.arange(len(digits.target)))


def split_scans(scans: ScanSet, share: float, seed: int) -> tuple[ScanSet, ScanSet]:
    """Split scans at random into fractions (1 - share, share) of each class."""
    rng = _generator(seed, 'split', 0)
    second = np.zeros(len(scans.ids), bool)
    for label in np.unique(scans.labels):
        members = np.flatnonzero(scans.labels == label)
        second[rng.permutation(members)[: round(share * len(members))]] = True
    first, other = ScanSet(*(a[~second] for a in scans)), ScanSet(*(a[second] for a in scans))
    return first, other


def build_digits(
    root: Path,
    recipe: DigitsRecipe,
    force: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DigitsSummary:
    """Write the data set to ``root`` unless the same one is already there and complete.

    It is written beside ``root`` and renamed, so a killed run leaves no partial data set; the next
    run removes the remains.

    Args:
        root: Folder of the data set; its parent is created if missing.
        recipe: Recipe of the data set.
        force: Build again even if the data set exists.
        workers: Number of processes; all cores by default, 0 for the current process only.
        progress: Called with (images done, total images).

    Raises:
        DataError: If a count is below 1, the seed is negative, or the folder cannot be written or
            holds other content.
    """
    if min(recipe.train, recipe.val) < 1 or recipe.seed < 0:
        raise DataError(
            f'{recipe.train} train and {recipe.val} val images from seed {recipe.seed}: '
            'choose at least 1 image each and a seed from 0.'
        )
    root = Path(root).resolve()  # keeps links to the folder
    if not force and is_complete(root, recipe):
        return _summary(root, built=False)
    if root.exists() and not _is_ours(root):
        raise DataError(f'{root} does not hold this data set: move it or name another --out.')
    try:
        _replace(root, recipe, workers, progress)
    except OSError as error:
        raise DataError(f'{root} cannot be written ({error}): name another --out.') from error
    return _summary(root, built=True)


def _replace(
    root: Path,
    recipe: DigitsRecipe,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    partial_root = root.with_name(f'.{root.name}.partial')
    old_root = root.with_name(f'.{root.name}.old')
    _remove(partial_root)
    _remove(old_root)
    _write_all(partial_root, recipe, workers, progress)
    if root.exists():
        root.rename(old_root)
    partial_root.rename(root)
    _remove(old_root)


def is_complete(root: Path, recipe: DigitsRecipe) -> bool:
    """Whether ``root`` holds exactly this recipe's data set, with images of full length."""
    for split in SPLITS:
        content = _read_annotations(root, split)
        if content is None or content['info'].get('fingerprint') != recipe.fingerprint():
            return False
        for image in content['images']:
            path = root / split / image['file_name']
            if not path.is_file() or path.stat().st_size != image['bytes']:
                return False
    return True


def _is_ours(root: Path) -> bool:
    """Whether a folder is empty or has an annotation file with the generator's name."""
    if root.is_dir() and not any(root.iterdir()):
        return True
    return any(_read_annotations(root, split) for split in SPLITS)


def _read_annotations(root: Path, split: str) -> dict[str, Any] | None:
    """Content of a split's JSON; None if it is missing, truncated or from another source."""
    try:
        content = json.loads((root / 'annotations' / f'{split}.json').read_text())
        return content if content['info']['generator'] == GENERATOR else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _summary(root: Path, built: bool) -> DigitsSummary:
    images, boxes = {}, {}
    for split in SPLITS:
        content = json.loads((root / 'annotations' / f'{split}.json').read_text())
        images[split], boxes[split] = len(content['images']), len(content['annotations'])
    return DigitsSummary(root, images, boxes, built)


def _write_all(
    root: Path,
    recipe: DigitsRecipe,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    scan_sets = split_scans(load_scans(), recipe.val_share, recipe.seed)
    counts = (recipe.train, recipe.val)
    done = 0
    (root / 'annotations').mkdir(parents=True)
    for split, scans, count in zip(SPLITS, scan_sets, counts):
        pictures = []
        for picture in write_pictures(root / split, count, scans, recipe, workers):
            pictures.append(picture)
            done += 1
            if progress is not None:
                progress(done, sum(counts))
        write_annotations(root / 'annotations' / f'{split}.json', pictures, recipe)


def write_pictures(
    folder: Path, count: int, scans: ScanSet, recipe: DigitsRecipe, workers: int | None = None
) -> Iterator[Picture]:
    """Write ``count`` PNG files into a new folder, whose name selects the random streams."""
    folder.mkdir(parents=True)
    write = partial(_write_picture, folder, scans, recipe)
    processes = (os.cpu_count() or 1) if workers is None else workers
    if processes < 2 or count < MIN_PARALLEL:
        yield from map(write, range(1, count + 1))
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(write, range(1, count + 1), chunksize=8)


def _write_picture(folder: Path, scans: ScanSet, recipe: DigitsRecipe, number: int) -> Picture:
    scene = draw_scene(_generator(recipe.seed, folder.name, number), scans, recipe.scene)
    path = folder / f'{number:06d}.png'
    _, encoded = cv2.imencode('.png', scene.image, PNG_OPTIONS)
    path.write_bytes(encoded.tobytes())
    return Picture(number, path.name, len(encoded), scene.objects)


def _generator(seed: int, stream: str, number: int) -> np.random.Generator:
    """Random generator of an image, independent of the order of drawing."""
    entropy = [seed, int.from_bytes(stream.encode(), 'big'), number]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def write_annotations(path: Path, pictures: Iterable[Picture], recipe: DigitsRecipe) -> None:
    """Write COCO JSON; each annotation also names its scan as ``scan_id``."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    size = {'width': recipe.scene.width, 'height': recipe.scene.height}
    for picture in pictures:
        name = {'id': picture.number, 'file_name': picture.file_name, 'bytes': picture.bytes}
        images.append({**name, **size, 'license': 1})
        for item in picture.objects:
            annotation = {
                'id': len(annotations) + 1,
                'image_id': picture.number,
                'category_id': item.label + 1,
                'bbox': list(item.box),
                'area': item.box[2] * item.box[3],
                'iscrowd': 0,
                'scan_id': item.scan_id,
            }
            annotations.append(annotation)
    info = {
        'description': 'Handwritten digits of scikit-learn load_digits in synthetic scenes',
        'generator': GENERATOR,
        'version': str(VERSION),
        'seed': recipe.seed,
        'fingerprint': recipe.fingerprint(),
    }
    content = {
        'info': info,
        'licenses': [{'id': 1, 'name': SCANS_LICENCE, 'url': SCANS_URL}],
        'categories': [{'id': i, 'name': name} for i, name in enumerate(CLASSES, start=1)],
        'images': images,
        'annotations': annotations,
    }
    path.write_text(json.dumps(content))


def _remove(folder: Path) -> None:
    """Delete a folder written by this module, if it exists."""
    if folder.exists():
        shutil.rmtree(folder)
