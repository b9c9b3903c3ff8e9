"""Reading image files of unknown origin: the same pixels as mmdet reads, limits, torn files."""

from __future__ import annotations

import io
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from gfl_det.datasets import CocoDataset
from gfl_det.datasets.checks.image_files import look_at
from gfl_det.datasets.images import ENDINGS, check_array, decode_image, read_image
from gfl_det.errors import DataError
from gfl_det.utils import pixels
from gfl_det.utils.pixels import EXIF_ORIENTATION, LIMIT_VARIABLE, header_of

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def encoded(kind: str, mode: str = 'RGB', **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that promises so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack('>I', zlib.crc32(kind + content))
        return struct.pack('>I', len(content)) + kind + content + check

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b'\0' * 1000)
    parts = (chunk(b'IHDR', header), chunk(b'IDAT', rows), chunk(b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


@pytest.mark.parametrize(
    ('ending', 'content'),
    [
        ('png', encoded('PNG')),
        ('png', encoded('PNG', 'RGBA')),
        ('png', encoded('PNG', 'L')),
        ('png', encoded('PNG', 'P')),
        ('png', encoded('PNG', '1')),
        ('jpg', encoded('JPEG')),
        ('jpg', encoded('JPEG', 'CMYK')),
        ('jpg', encoded('JPEG', 'L')),
        ('jpg', encoded('JPEG', progressive=True)),
        ('bmp', encoded('BMP')),
        ('webp', encoded('WEBP')),
        ('tif', encoded('TIFF')),
        ('png', cv2.imencode('.png', PIXELS.astype(np.uint16) * 256)[1].tobytes()),
        ('jpg', encoded('PNG')),  # the content decides
    ],
)
def test_pixels_are_those_that_mmdet_reads(tmp_path, ending: str, content: bytes) -> None:
    path = tmp_path / f'image.{ending}'
    path.write_bytes(content)
    expected = LoadImageFromFile()(dict(img_path=str(path)))['img']
    found = read_image(path)
    assert found.shape == (40, 60, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_an_image_is_turned_as_its_exif_entry_says(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = tmp_path / 'turned.jpg'
    path.write_bytes(encoded('JPEG', exif=exif))
    assert read_image(path).shape == (60, 40, 3)


@pytest.mark.parametrize('size', [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (200_001, 1000)])
def test_an_image_of_too_many_pixels_is_refused_undecoded(tmp_path, monkeypatch, size) -> None:
    monkeypatch.setattr('mmcv.imfrombytes', lambda *_, **__: pytest.fail('was decoded'))
    path = tmp_path / 'bomb.png'
    path.write_bytes(bomb(*size))
    assert path.stat().st_size < 200
    with pytest.raises(DataError, match='more than the limit') as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_the_limit_is_the_callers() -> None:
    content = encoded('PNG')
    assert decode_image(content, 'x', max_pixels=2400).shape == (40, 60, 3)
    with pytest.raises(DataError, match=r'x .*2,400 .*2,399'):
        decode_image(content, 'x', max_pixels=2399)


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_the_callers_limit_holds_beyond_pillows(monkeypatch, backend) -> None:
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
    monkeypatch.setattr(pixels, 'MAX_PIXELS', 1000)  # it refuses twice as many
    content = encoded('PNG')
    assert decode_image(content, 'x', 2400, backend=backend).shape == (40, 60, 3)
    with pytest.raises(DataError, match='limit of 2,399'):
        decode_image(content, 'x', 2399, backend=backend)
    assert Image.MAX_IMAGE_PIXELS == 500


@pytest.mark.parametrize('flag', ['color', 'color_ignore_orientation', 'grayscale'])
@pytest.mark.parametrize('mode', ['L', 'LA', 'P', 'RGB', 'RGBA', '1', 'I;16'])
def test_the_callers_limit_holds_beyond_opencvs(monkeypatch, mode, flag) -> None:
    """OpenCV reads its limit when it is loaded; then Pillow gives the same values."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    if mode == 'I;16':
        deep = np.random.default_rng(0).integers(0, 65536, (40, 60), dtype=np.uint16)
        content = cv2.imencode('.png', deep)[1].tobytes()
    else:
        content = encoded('PNG', mode, exif=exif)
    expected = decode_image(content, 'x', flag=flag)
    by_default = mmcv.imfrombytes

    def refuse(content: bytes, backend: str = 'cv2', **decoding: object) -> np.ndarray:
        if backend == 'cv2':
            raise cv2.error('Assertion failed: pixels <= CV_IO_MAX_IMAGE_PIXELS')
        return by_default(content, backend=backend, **decoding)

    monkeypatch.setattr('mmcv.imfrombytes', refuse)
    monkeypatch.setenv(LIMIT_VARIABLE, '2399')
    with pytest.raises(DataError, match=f'limit of 2,399 .{LIMIT_VARIABLE} in the environment'):
        decode_image(content, 'x', flag=flag)
    found = decode_image(content, 'x', max_pixels=2400, flag=flag)
    close = 1 if flag == 'grayscale' else 0  # their weights of the colours are rounded otherwise
    np.testing.assert_allclose(found.astype(int), expected, atol=close)


def test_threads_do_not_take_each_others_limit(monkeypatch) -> None:
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
    monkeypatch.setattr(pixels, 'MAX_PIXELS', 1000)
    content = encoded('PNG')
    with ThreadPoolExecutor(8) as pool:
        limits = [2400, 2399] * 50
        found = list(pool.map(lambda limit: outcome(content, limit), limits))
    assert found == [True, False] * 50
    assert Image.MAX_IMAGE_PIXELS == 500


def outcome(content: bytes, limit: int) -> bool:
    try:
        return decode_image(content, 'x', limit, backend='pillow') is not None
    except DataError:
        return False


def test_a_damaged_exif_entry_hides_no_size() -> None:
    content = encoded('JPEG', exif=b'Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff' + b'\xff' * 40)
    assert header_of(content)[:2] == (2400, 1)
    assert decode_image(content, 'x').shape == (40, 60, 3)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
@pytest.mark.parametrize('share', [0.3, 0.6, 0.95])
def test_a_torn_file_is_told_from_a_whole_one(kind: str, share: float) -> None:
    content = encoded(kind)
    assert decode_image(content + b'bytes behind the end', 'x').shape == (40, 60, 3)
    with pytest.raises(DataError, match=r'^x is '):
        decode_image(content[: int(share * len(content))], 'x')


def test_a_thumbnails_end_is_not_the_images() -> None:
    """A JPEG within the header of a JPEG, as cameras write it."""
    inner = encoded('JPEG', quality=10)
    content = encoded('JPEG')
    segment = b'\xff\xe1' + struct.pack('>H', len(inner) + 8) + b'Exif\0\0' + inner
    whole = content[:2] + segment + content[2:]
    assert decode_image(whole, 'x').shape == (40, 60, 3)
    with pytest.raises(DataError, match='truncated'):
        decode_image(whole[:-200], 'x')


@pytest.mark.parametrize(
    'content', [b'', b'torn', b'\x89PNG', b'\xff\xd8\xff', b'GIF89a', b'%!PS-Adobe', b'<svg/>' * 50]
)
def test_files_that_are_not_images_are_refused(tmp_path, content: bytes) -> None:
    path = tmp_path / 'x.png'
    path.write_bytes(content)
    with pytest.raises(DataError, match=r'x\.png is '):
        read_image(path)


def test_files_that_cannot_be_read_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match='No such file'):
        read_image(tmp_path / 'absent.png')
    with pytest.raises(DataError, match='Is a directory'):
        read_image(Path(tmp_path))


def test_arrays_become_three_channels() -> None:
    grey = PIXELS[..., 0]
    for array in (grey, grey[..., None]):
        assert np.array_equal(check_array(array, 'x'), np.stack([grey] * 3, axis=-1))
    four = np.concatenate([PIXELS, grey[..., None]], axis=-1)
    assert np.array_equal(check_array(four, 'x'), PIXELS)


@pytest.mark.parametrize(
    ('array', 'match'),
    [
        (PIXELS.astype(float), 'x is of type float64'),
        (PIXELS[None], r'x has the shape \(1, 40, 60, 3\)'),
        (np.zeros((0, 5, 3), np.uint8), 'shape'),
        (np.zeros((4, 5, 2), np.uint8), 'shape'),
        ('text', 'shape'),
        (None, 'shape'),
    ],
)
def test_other_arrays_are_refused(array, match) -> None:
    with pytest.raises(DataError, match=match):
        check_array(array, 'x')


@pytest.mark.parametrize('ending', ['gif', 'avif', 'pnm', 'sr'])
def test_formats_of_opencv_are_read(tmp_path, ending) -> None:
    try:
        written, content = cv2.imencode(f'.{ending}', PIXELS)
    except cv2.error:
        written = False
    if not written:
        pytest.skip(f'this OpenCV writes no {ending}')
    path = tmp_path / f'a.{ending}'
    path.write_bytes(content.tobytes())
    assert f'.{ending}' in ENDINGS
    expected = LoadImageFromFile()(dict(img_path=str(path)))['img']
    assert np.array_equal(read_image(path), expected)


def test_a_whole_tiff_of_floats_is_not_called_torn(tmp_path) -> None:
    path = tmp_path / 'a.tif'
    Image.fromarray(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)).save(path)
    with pytest.raises(DataError, match=r'a\.tif .*\(floats\)'):
        read_image(path)
    with pytest.raises(DataError, match=r'^x is (truncated|not an image)'):
        decode_image(path.read_bytes()[:900], 'x')


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_a_tiff_that_pillow_does_not_know_is_named(tmp_path, dtype) -> None:
    path = tmp_path / 'a.tif'
    assert cv2.imwrite(str(path), PIXELS.astype(dtype))
    with pytest.raises(DataError, match=r'a\.tif is a TIFF that .* more than four channels'):
        read_image(path)


def test_a_compression_that_opencv_lacks_is_named(tmp_path) -> None:
    path = tmp_path / 'a.tif'
    Image.fromarray(PIXELS).save(path, compression='zstd')
    if cv2.imread(str(path)) is not None:
        pytest.skip('this OpenCV decodes it')
    with pytest.raises(DataError, match=r'\(zstd compression\): save it as PNG'):
        read_image(path)


@pytest.mark.parametrize('grey', [True, False])
def test_floats_that_would_become_black_are_refused_everywhere(tmp_path, grey) -> None:
    path = tmp_path / '1.pfm'
    drawn = PIXELS[:20, :30, 0] if grey else PIXELS[:20, :30]
    labels = dict(
        images=[dict(id=1, file_name='1.pfm', width=30, height=20)],
        annotations=[],
        categories=[dict(id=1, name='cat')],
    )
    (tmp_path / 'labels.json').write_text(json.dumps(labels))
    dataset = CocoDataset(
        ann_file=str(tmp_path / 'labels.json'),
        data_prefix=dict(img=str(tmp_path)),
        metainfo=dict(classes=('cat',)),
        pipeline=[dict(type='LoadImageFromFile')],
    )
    assert cv2.imwrite(str(path), drawn.astype(np.float32))
    np.testing.assert_array_equal(read_image(path), dataset[0]['img'])
    np.testing.assert_array_equal(read_image(path), drawn)
    assert look_at(str(path)).size == (30, 20)
    assert cv2.imwrite(str(path), drawn / np.float32(255))
    for read in (lambda: read_image(path), lambda: dataset[0]):
        with pytest.raises(DataError, match=r'1\.pfm holds floats up to .* multiply them by 255'):
            read()
    assert 'black' in str(look_at(str(path)).fault)


@pytest.mark.parametrize('ending', ['.hdr', '.pic', '.pam'])
def test_formats_with_text_headers_are_read_as_in_training(tmp_path, ending) -> None:
    drawn = PIXELS[:20, :30]
    path = tmp_path / f'a{ending}'
    assert cv2.imwrite(str(path), drawn if ending == '.pam' else drawn / np.float32(256))
    np.testing.assert_array_equal(read_image(path), mmcv.imread(str(path)))
    assert header_of(path.read_bytes()).pixels == 600
    with pytest.raises(DataError, match='600 pixels'):
        read_image(path, max_pixels=599)
    content = path.read_bytes()
    for part in (content[: len(content) // 2], content[:20]):
        with pytest.raises(DataError):
            decode_image(part, path.name)


@pytest.mark.parametrize(
    'head',
    [
        b'#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 100000 +X 100000\n',
        b'PF\n100000 100000\n-1.0\n',
        b'P7\nWIDTH 100000\nHEIGHT 100000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n',
    ],
)
def test_texts_that_promise_too_much_are_refused_undecoded(head) -> None:
    with pytest.raises(DataError, match=r'10,000,000,000 pixels.*undecoded'):
        decode_image(head + bytes(99), 'name')
