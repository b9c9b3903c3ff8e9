"""Shards of very large sets of images, and the Parquet files with their detections.

A shard is the unit of work and of commitment: its images follow from the sorted list of inputs, its
batches contain no images of other shards, and its results are written completely or not at all. The
rows of a run therefore do not depend on which worker processed a shard or on interruptions.

A folder of results contains ``detections/part-NNNNNN.parquet`` (one row per detection, an empty
table for a shard without detections), ``failures/part-NNNNNN.parquet`` (one row per failed image,
with the reason; only if there are any) and ``manifest.json``.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from pyarrow import fs
from pyarrow import parquet as pq

from gfl_det.datasets.images import ENDINGS
from gfl_det.datasets.table import CocoTable
from gfl_det.errors import DataError
from gfl_det.evaluation.detections import Detections, check_detections, sorted_rows
from gfl_det.evaluation.shown import find_id, ids_by_name, image_ids, path_ends
from gfl_det.inference.results import ImageResult
from gfl_det.ops.boxes import xyxy_to_xywh
from gfl_det.ops.intervals import SIDES
from gfl_det.utils.files import clear_parts, make_folder, write_blocks, write_json

SCHEMA_VERSION = 1
MANIFEST = 'manifest.json'
NAME_COLUMNS = ('path', 'name', 'key', 'uri', 'file_name')  # of Parquet inputs
BYTES_COLUMNS = ('bytes', 'image', 'content', 'data')
KINDS = ('edge_std', 'edge_low', 'edge_high')
TEXT = pa.dictionary(pa.int32(), pa.string())
EDGES = [f'{kind}_{side}' for kind in KINDS for side in SIDES]
NUMBERS = ['x1', 'y1', 'x2', 'y2', 'score_raw', 'score', *EDGES]
MORE = ['score_raw', *EDGES]  # beside what the metrics need
SCHEMA = pa.schema(
    [
        ('image', TEXT),
        *((name, pa.float32()) for name in NUMBERS[:4]),
        ('label', TEXT),
        *((name, pa.float32()) for name in NUMBERS[4:]),
    ]
)
FAILURES = pa.schema([('image', pa.string()), ('reason', pa.string())])
VERSION_KEY, IMAGES_KEY, FAILED_KEY = NOTES = 'gfl_det.schema', 'gfl_det.images', 'gfl_det.failures'
REMOTE = '://'
MAGIC = frozenset('*[')

Content = tuple[str, 'bytes | str']  # name and bytes of an image, or the reason why there are none


class Shard(NamedTuple):
    """Group of images: files, the images of a tar, or a row group of a Parquet file."""

    number: int
    paths: tuple[str, ...]
    row_group: int | None = None

    @property
    def part(self) -> str:
        """Name of the result files."""
        return f'part-{self.number:06d}.parquet'


class ShardCounts(NamedTuple):
    """Counts of a processed shard."""

    images: int
    detections: int
    failures: int


def list_shards(inputs: Sequence[str], size: int) -> list[Shard]:
    """List the shards of folders, globs, lists (``.txt``), tars, Parquet files and images.

    Args:
        inputs: Paths and addresses (``s3://``, ``gs://``). Folders are searched recursively.
        size: Image files per shard; each tar and each row group is one shard.

    Raises:
        DataError: If an input has no image, or cannot be listed.
    """
    found: list[str] = []
    for given in inputs:
        try:
            paths = _expanded(given)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f'{given} cannot be listed ({error}): correct it.') from error
        if not paths:
            raise DataError(f'{given} has no image, tar or Parquet file: name another input.')
        found += paths
    ordered = sorted(set(found))
    tables = [path for path in ordered if _ending(path) == '.parquet']
    tars = [path for path in ordered if _ending(path) == '.tar']
    files = [path for path in ordered if _ending(path) not in ('.parquet', '.tar')]
    plan: list[tuple[tuple[str, ...], int | None]] = [
        (tuple(files[begin : begin + size]), None) for begin in range(0, len(files), size)
    ]
    plan += [((path,), None) for path in tars]
    for path in tables:
        try:
            with open_input(path) as file:
                groups = pq.ParquetFile(file).num_row_groups
        except (OSError, pa.ArrowException) as error:
            raise DataError(f'{path} is not a Parquet file ({error}): remove it.') from error
        plan += [((path,), group) for group in range(groups)]
    return [Shard(number, *each) for number, each in enumerate(plan)]


def _expanded(given: str) -> list[str]:
    """Return the files that an input refers to."""
    if REMOTE in given:
        return _remote(given)
    path = Path(given)
    if path.is_dir():
        return [str(each) for each in path.rglob('*') if each.is_file() and _is_input(str(each))]
    if path.suffix == '.txt' and path.is_file():
        lines = path.read_text(encoding='utf-8').splitlines()
        return [line.strip() for line in lines if line.strip()]
    if path.is_file():
        return [given]
    return [each for each in glob.glob(given, recursive=True) if os.path.isfile(each)]


def _remote(given: str) -> list[str]:
    """Return the objects under an address, each with its options (``?endpoint_override=...``)."""
    address, mark, options = given.partition('?')
    scheme, _, rest = address.partition(REMOTE)
    steps = rest.split('/')
    fixed = next((i for i, step in enumerate(steps) if MAGIC & set(step)), len(steps))
    store, base = fs.FileSystem.from_uri(
        f'{scheme}{REMOTE}{"/".join(steps[:fixed])}{mark}{options}'
    )
    pattern = '/'.join([base, *steps[fixed:]])
    if store.get_file_info(base).type == fs.FileType.File:
        names = [base]
    else:
        chosen = store.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
        files = [each.path for each in chosen if each.type == fs.FileType.File]
        names = [each for each in files if _is_input(each)]
        if fixed < len(steps):
            names = [each for each in files if fnmatch.fnmatchcase(each, pattern)]
    return [f'{scheme}{REMOTE}{quote(name)}{mark}{options}' for name in names]


def _ending(path: str) -> str:
    plain = path.partition('?')[0] if REMOTE in path else path
    return posixpath.splitext(plain)[1].lower()


def _is_input(path: str) -> bool:
    return _ending(path) in ENDINGS or _ending(path) in ('.tar', '.parquet')


def open_input(path: str) -> Any:
    """Open a file or an object for reading."""
    if REMOTE not in path:
        return open(path, 'rb')
    store, name = fs.FileSystem.from_uri(path)
    return store.open_input_file(name)


def read_shard(shard: Shard) -> Iterator[Content]:
    """Yield name and content of each image, or the reason why it cannot be read."""
    path = shard.paths[0]
    try:
        if shard.row_group is not None:
            yield from _read_rows(path, shard.row_group)
        elif _ending(path) == '.tar':
            yield from _read_tar(path)
        else:
            for each in shard.paths:
                yield _read_file(each)
    except (OSError, EOFError, ValueError, tarfile.TarError, pa.ArrowException) as error:
        yield path, f'{path} cannot be read ({error}): its further images are left out.'


def _read_file(path: str) -> Content:
    try:
        with open_input(path) as file:
            return path, file.read()
    except (OSError, ValueError, pa.ArrowException) as error:
        return path, f'{path} cannot be read ({error}).'


def _read_tar(path: str) -> Iterator[Content]:
    with open_input(path) as file, tarfile.open(fileobj=file, mode='r|') as members:
        for member in members:
            content = members.extractfile(member) if member.isfile() else None
            if content is not None and posixpath.splitext(member.name)[1].lower() in ENDINGS:
                yield f'{path}/{member.name}', content.read()


def _read_rows(path: str, group: int) -> Iterator[Content]:
    with open_input(path) as file:
        table = pq.ParquetFile(file).read_row_group(group)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    names = next((columns[name] for name in NAME_COLUMNS if name in columns), None)
    contents = next((columns[name] for name in BYTES_COLUMNS if name in columns), None)
    if names is None and contents is None:
        raise ValueError(
            f'it has no column of {", ".join((*NAME_COLUMNS, *BYTES_COLUMNS))}, only '
            f'{", ".join(columns)}'
        )
    for row in range(table.num_rows):
        value = None if contents is None else contents[row]
        if isinstance(value, dict):  # Hugging Face's image format
            value = value.get('bytes') or value.get('path')
        name = str(names[row]) if names is not None else f'{path}#{group}-{row}'
        if isinstance(value, bytes):
            yield name, value
        else:
            yield _read_file(value if isinstance(value, str) else name)


def table_of_results(results: Iterable[ImageResult]) -> pa.Table:
    """Return one row per detection, in order."""
    found = [each for each in results if each.error is None and len(each)]
    columns: dict[str, Any] = {
        'image': [name for each in found for name in [each.name] * len(each)],
        'label': [
            each.classes[label] for each in found for label in each.instances.labels.tolist()
        ],
    }
    numbers = [_numbers(each) for each in found] or [np.zeros((0, len(NUMBERS)), np.float32)]
    for name, values in zip(NUMBERS, np.concatenate(numbers).T):
        # Heads without distributions have no edge columns: null rather than NaN.
        columns[name] = pa.array(values, pa.float32(), mask=np.isnan(values))
    arrays = [
        pa.array(columns[field.name], pa.string()).dictionary_encode()
        if field.type == TEXT
        else columns[field.name]
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _numbers(result: ImageResult) -> np.ndarray:
    """Return the numeric columns (N, len(NUMBERS)) of an image; NaN if the head has none."""
    found = result.instances
    values = np.full((len(found), len(NUMBERS)), np.nan, np.float32)
    values[:, :4] = found.bboxes.numpy()
    values[:, 4] = found.get('raw_scores', found.scores).numpy()
    values[:, 5] = found.scores.numpy()
    for place, kind in enumerate(KINDS):
        if kind in found:
            values[:, 6 + 4 * place : 10 + 4 * place] = found[kind].numpy()
    return values


class ResultFolder:
    """Folder of results, which several processes may write to.

    Args:
        path: Path of the folder; an address is refused.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if REMOTE in str(path):
            raise DataError(f'Results lie in a folder: mount {path}, or name another place.')
        self.path = Path(path).absolute()
        self.detections, self.failures = self.path / 'detections', self.path / 'failures'
        self.tries = self.path / 'tries'  # images in progress when a process ended

    def start(self, shards: Sequence[Shard], settings: dict[str, Any]) -> list[Shard]:
        """Start or resume a run; return the shards that are not done.

        Raises:
            DataError: If the folder has results of other inputs or settings.
        """
        for folder in (self.detections, self.failures, self.tries):
            make_folder(folder)
        digest = hashlib.sha256(json.dumps(shards).encode()).hexdigest()
        manifest = dict(schema=SCHEMA_VERSION, inputs=digest, shards=len(shards), **settings)
        old = self.manifest()
        differ = [key for key, value in manifest.items() if old and old.get(key) != value]
        if differ:
            raise DataError(
                f'{self.path} has results of another run ({", ".join(differ)} differ): name '
                'another --out, or repeat the command of before.'
            )
        if old is None:
            write_json(self.path / MANIFEST, {**manifest, 'complete': False}, indent=1)
        return [shard for shard in shards if not (self.detections / shard.part).exists()]

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest; None if there is none."""
        try:
            return json.loads((self.path / MANIFEST).read_text(encoding='utf-8'))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(f'{self.path / MANIFEST} cannot be read: {error}.') from error

    def commit(self, shard: Shard, results: Sequence[ImageResult]) -> ShardCounts:
        """Write the results of a shard to disk; detections come last and mark it as done."""
        failed = [(each.name, each.error) for each in results if each.error is not None]
        table = table_of_results(results)
        counts = ShardCounts(len(results), table.num_rows, len(failed))
        if failed:
            columns = [pa.array(each, pa.string()) for each in zip(*failed)]
            _write(self.failures / shard.part, pa.Table.from_arrays(columns, schema=FAILURES))
        known = dict(zip(NOTES, map(str, (SCHEMA_VERSION, len(results), len(failed)))))
        _write(self.detections / shard.part, table.replace_schema_metadata(known))
        return counts

    def finish(self) -> ShardCounts:
        """Complete the manifest with the counts of all shards; return their sums."""
        counts = {path.name: self.counts(path) for path in self.parts()}
        total = ShardCounts(*(sum(each) for each in zip(*counts.values())))
        manifest = {**(self.manifest() or {}), 'complete': True, 'totals': total._asdict()}
        write_json(self.path / MANIFEST, {**manifest, 'parts': counts}, indent=1)
        for folder in (self.detections, self.failures):
            clear_parts(folder)
        if not any(self.failures.iterdir()):  # readers of a folder need a schema
            _write(self.failures / 'none.parquet', FAILURES.empty_table())
        return total

    def parts(self) -> list[Path]:
        """Return the files of detections, in order.

        Raises:
            DataError: If there are none.
        """
        parts = sorted(self.detections.glob('part-*.parquet'))
        if not parts:
            raise DataError(f'{self.path} has no detections/part-*.parquet: give the --out of '
                            'gfl-det infer-many.')  # fmt: skip
        return parts

    def counts(self, path: Path) -> ShardCounts:
        """Return the counts in the footer of a file."""
        meta = pq.read_metadata(path)
        notes = {key.decode(): int(value) for key, value in (meta.metadata or {}).items()
                 if key.startswith(b'gfl_det.')}  # fmt: skip
        return ShardCounts(notes[IMAGES_KEY], meta.num_rows, notes[FAILED_KEY])


def _write(path: Path, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression='zstd')
    write_blocks(path, [buffer.getvalue()])


def coco_results(out: str | os.PathLike[str], annotations: Any) -> list[dict[str, Any]]:
    """Return all detections of a folder as COCO results, in order.

    Args:
        out: Folder of results.
        annotations: Parsed COCO file that provides the image and class ids.

    Raises:
        DataError: If an image or a class is not in the annotations.
    """
    images, categories = annotations['images'], annotations['categories']
    names = AnnotatedNames(images, categories)
    entries = []
    for path in ResultFolder(out).parts():
        table = pq.read_table(path)
        rows = (names.rows(table.column(key), key).tolist() for key in ('image', 'label'))
        columns = {name: table.column(name).to_pylist() for name in NUMBERS}
        for row, (image, label) in enumerate(zip(*rows)):
            numbers = {name: values[row] for name, values in columns.items()}
            left, top, right, bottom = (numbers.pop(name) for name in NUMBERS[:4])
            entry = dict(image_id=images[image]['id'], category_id=categories[label]['id'])
            entry['score'] = numbers['score']
            entry['bbox'] = [left, top, right - left, bottom - top]
            entry['raw_score'] = numbers['score_raw']
            for kind in KINDS:
                edges = [numbers[f'{kind}_{side}'] for side in SIDES]
                if None not in edges:
                    entry[kind] = edges
            entries.append(entry)
    return entries


def read_parts(out: str | os.PathLike[str], table: CocoTable) -> Iterator[Detections]:
    """Return an iterator over the detections of each file, for :func:`..parts.evaluate_parts`.

    Args:
        out: Folder of results.
        table: Annotations of the same images, indexed as in :func:`..detections.gts_of_table`.
            It is not kept.

    Raises:
        DataError: If results are missing, or, while iterating, if an image or a class is not in
            the annotations, or a score is not in [0, 1].
    """
    detections = _Reader(table)
    return (detections(path, _read(path)) for path in _finished(out))


def read_all(
    out: str | os.PathLike[str], table: CocoTable
) -> tuple[Detections, dict[str, np.ndarray]]:
    """Return the N detections of a folder, and what else is known about all of them.

    Args:
        out: Folder of results.
        table: As in :func:`read_parts`.

    Returns:
        The detections; ``score_raw`` ``(N,)``, and the KINDS of GFL heads, each ``(N, 4)`` px.

    Raises:
        DataError: As in :func:`read_parts`.
    """
    rows = pa.concat_tables(_read(path, MORE) for path in _finished(out))
    known = {'score_raw': rows.column('score_raw').to_numpy().astype(float)}
    for kind in KINDS:
        columns = [rows.column(f'{kind}_{side}').to_numpy() for side in SIDES]
        edges = np.stack(columns, axis=1).astype(float)
        if not np.isnan(edges).any():
            known[kind] = edges
    return _Reader(table)(Path(out), rows), known


def _finished(out: str | os.PathLike[str]) -> list[Path]:
    """Return the files of a run that has done all its shards."""
    folder = ResultFolder(out)
    parts, manifest = folder.parts(), folder.manifest()
    if manifest is not None and not manifest['complete']:
        raise DataError(
            f'{folder.path} has {len(parts)} of {manifest["shards"]} shards: repeat the command of '
            'gfl-det infer-many, which does the others.'
        )
    return parts


class _Reader:
    """Reads parts as detections of a table's images, which are numbered by their sorted ids."""

    def __init__(self, table: CocoTable) -> None:
        self._place = np.empty(len(table.image_ids), int)
        self._place[sorted_rows(table.image_ids)] = np.arange(len(self._place))
        images = (dict(file_name=name) for name in table.file_names)
        self._names = AnnotatedNames(images, [dict(name=name) for name in table.class_names])

    def __call__(self, path: Path, rows: pa.Table) -> Detections:
        corners = np.stack([rows.column(name).to_numpy() for name in NUMBERS[:4]], axis=1)
        found = Detections(
            self._place[self._names.rows(rows.column('image'), 'image')],
            self._names.rows(rows.column('label'), 'label'),
            xyxy_to_xywh(corners.astype(float)),
            rows.column('score').to_numpy().astype(float),
        )
        return check_detections(found, str(path))


def _read(path: Path, more: Sequence[str] = ()) -> pa.Table:
    try:
        return pq.read_table(path, columns=['image', 'label', *NUMBERS[:4], 'score', *more])
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f'{path} cannot be read ({error}): remove it, and repeat gfl-det infer-many.'
        ) from error


class AnnotatedNames:
    """Lookup of annotated images and classes by the names in the results.

    Args:
        images: Entries with ``file_name``.
        categories: Entries with ``name``.
    """

    def __init__(self, images: Iterable[Any], categories: Iterable[Any]) -> None:
        self._images = image_ids({**each, 'id': row} for row, each in enumerate(images))
        numbered = ({**each, 'id': row} for row, each in enumerate(categories))
        self._classes = ids_by_name(numbered, 'name', 'class')

    def rows(self, column: Any, kind: str) -> np.ndarray:
        """Return the index of the entry ``(N,)`` for each row of a dictionary-encoded column.

        Raises:
            DataError: If a name is not in the annotations, or two images match one of them.
        """
        found = [np.zeros(0, int)]
        for chunk in column.chunks:
            names = chunk.dictionary.to_pylist()
            if kind == 'label':
                known = [find_id(self._classes, [name], name, 'class') for name in names]
            else:
                known = [find_id(self._images, path_ends(name), name, 'image') for name in names]
            found.append(np.array(known, int)[chunk.indices.to_numpy()])
        return np.concatenate(found)
