"""Odd image files: every reader gives pixels or one sentence, and no bomb is decoded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_det import GFLInferencer
from gfl_det.datasets import CocoDataset
from gfl_det.datasets.checks.image_files import look_at
from gfl_det.datasets.images import decode_image, read_image
from gfl_det.errors import DataError
from gfl_det.utils.pixels import MAX_PIXELS
from gfl_det.visualization.demo.server import UploadLimits, decode_upload
from tests.helpers.image_files import HEIGHT, WIDTH, File, encoded, image_files, png
from tests.helpers.inferring import write_checkpoint

pytestmark = pytest.mark.usefixtures('bounds')

FILES = {file.name: file for file in image_files()}
PIPELINE = [dict(type='LoadImageFromFile')]


def read(path: Path) -> tuple[int, int]:
    return read_image(path).shape[:2]


def fetched(path: Path) -> tuple[int, int]:
    return decode_image(path.read_bytes(), 'http://x/y.png').shape[:2]


def looked_at(path: Path) -> tuple[int, int]:
    found = look_at(str(path))
    if found.fault is not None:
        raise DataError(found.fault)
    assert found.size is not None
    return found.size[::-1]


def trained_on(path: Path, backend: str = 'cv2') -> tuple[int, int]:
    """Read through the data set, by mmcv's own step."""
    image = dict(id=1, file_name=path.name, width=WIDTH, height=HEIGHT)
    box = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9], area=81, iscrowd=0)
    labels = path.with_name('labels.json')
    content = dict(images=[image], annotations=[box], categories=[dict(id=1, name='cat')])
    labels.write_text(json.dumps(content))
    dataset = CocoDataset(
        ann_file=str(labels),
        data_prefix=dict(img=str(path.parent)),
        metainfo=dict(classes=('cat',)),
        serialize_data=False,  # mmengine collects garbage after it, which takes longest of all
        pipeline=[dict(PIPELINE[0], imdecode_backend=backend)],
    )
    return dataset[0]['img'].shape[:2]


def uploaded(path: Path) -> tuple[int, int]:
    return decode_upload(path.read_bytes(), UploadLimits()).shape[:2]


READERS = (read, fetched, looked_at, trained_on, uploaded)
# Those that mmcv's step reads with grey in the place of what is missing, as mmdet does.
COMPLETED = (trained_on,)
FEWER_FORMATS = (uploaded,)


def outcome(reader, path: Path) -> tuple[int, int] | None:
    """Height and width, or None where the file is refused; all else fails the test."""
    try:
        return reader(path)
    except DataError as error:
        said = str(error)
    assert said
    assert '\n' not in said
    return None


def assert_defined(path: Path, file: File) -> None:
    for reader in READERS:
        found = outcome(reader, path)
        if file.refused and not (reader in COMPLETED and 'torn' in file.name):
            assert found is None, reader.__name__
        elif file.size is not None and reader not in FEWER_FORMATS:
            assert found == file.size, reader.__name__


@pytest.mark.parametrize('name', FILES)
def test_each_image_gives_pixels_or_a_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / 'x.png'
    path.write_bytes(FILES[name].content)
    assert_defined(path, FILES[name])


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('name', [name for name in FILES if 'bomb of' in name])
def test_no_bomb_is_decoded_for_training(tmp_path: Path, monkeypatch, name: str, backend) -> None:
    """Whatever the decoder, and even where OpenCV was imported first, with its own large limit."""
    if 'text' in name:
        pytest.skip('its pixels are few')
    monkeypatch.setattr('mmcv.imfrombytes', lambda *_, **__: pytest.fail('was decoded'))
    path = tmp_path / 'x.png'
    path.write_bytes(FILES[name].content)
    with pytest.raises(DataError, match=r'pixels, more than the limit|is not an image'):
        trained_on(path, backend)


def test_the_check_counts_pixels_before_it_decodes(tmp_path: Path, monkeypatch) -> None:
    """Also of a PNG, in which Pillow looks for an EXIF entry behind the pixels."""
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('was decoded'))
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', lambda *_: pytest.fail('was decoded'))
    path = tmp_path / 'x.png'
    path.write_bytes(png(4000, 4000))
    assert look_at(str(path), 15_000_000).fault == 'have more than 15,000,000 pixels'


@pytest.mark.parametrize('place', ['/dev/zero', 'pipe'])
def test_endless_files_are_not_read(tmp_path: Path, place: str) -> None:
    path = tmp_path / 'x.png'
    if place == 'pipe':
        os.mkfifo(path)
    else:
        path.symlink_to(place)
    for reader in (read, trained_on):
        with pytest.raises(DataError, match=r'device or a pipe'):
            reader(path)


def test_names_that_are_none(tmp_path: Path) -> None:
    for name in ('a\0b', 'x' * 5000, '\ud800'):
        with pytest.raises(DataError):
            read_image(tmp_path / name)


def test_the_detector_takes_them_all_and_says_which_it_could_not(tmp_path: Path) -> None:
    folder = tmp_path / 'images'
    folder.mkdir()
    names = (
        'PNG of 1 x 1', 'PNG of 20000 x 1', 'JPEG of mode CMYK', 'animated GIF', 'a text',
        'PNG torn at 0.5', 'PNG bomb of 20000 x 20000', '16 bits, png, 3 axes', 'PNG of mode LA',
    )  # fmt: skip
    for index, name in enumerate(names):
        (folder / f'{index}.png').write_bytes(FILES[name].content)
    detector = GFLInferencer(write_checkpoint(tmp_path))
    results = detector(str(folder), progress=False, batch_size=4)
    failed = {names[int(Path(each.source).stem)] for each in results.images if each.error}
    assert {'a text', 'PNG torn at 0.5', 'PNG bomb of 20000 x 20000'} <= failed
    assert failed <= {*names[1:2], *names[4:7]}
    assert len(results) == len(names)


def test_the_limit_is_that_of_the_readers() -> None:
    assert MAX_PIXELS < 200_000_000
    assert all(file.content.__sizeof__() < 40_000_000 for file in FILES.values())


@given(content=st.binary(max_size=300), start=st.sampled_from(['', 'PNG', 'JPEG', 'WEBP']))
@settings(max_examples=30)
def test_any_bytes_behind_any_beginning(tmp_path_factory, content: bytes, start: str) -> None:
    beginning = encoded(start)[:40] if start else b''
    path = tmp_path_factory.mktemp('any') / 'x.png'
    path.write_bytes(beginning + content)
    for reader in READERS:
        found = outcome(reader, path)
        assert found is None or np.prod(found) <= MAX_PIXELS
