"""Image sources: paths, folders, globs, URLs, arrays and videos."""

from __future__ import annotations

import glob
import http.client
import itertools
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, Union
from urllib.parse import urlsplit

import cv2
import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from gfl_det.datasets.images import (
    ENDINGS,
    check_array,
    decode_image,
    image_header,
    map_image,
    read_image,
)
from gfl_det.errors import ConfigError, DataError
from gfl_det.utils.pixels import is_endless, too_large

VIDEO_ENDINGS = frozenset(
    ['.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv']
)
MAX_DOWNLOAD = 64 * 2**20  # bytes per downloaded image
ANSWER_SECONDS = 20

NAMES_TOLD = 5  # files named when a folder has other files than images

NAMED = (str, Path)
PIXELS = (np.ndarray, Tensor, Image.Image)
OTHER = (
    'Inputs of type {} are not supported: give paths, URLs, PIL images, tensors (3, height, width) '
    'in RGB or arrays (height, width, 3) of uint8 in BGR.'
)

One = Union[str, Path, np.ndarray, Tensor, Image.Image]
Inputs = Union[One, Iterable[One]]


@dataclass(frozen=True)
class Reading:
    """Options for finding and decoding images.

    Args:
        max_pixels: Maximum pixels per image; None: :func:`..pixels.pixel_limit`.
        recursive: Search subfolders too.
        every: Use every n-th frame of a video.
        decoding: Keyword arguments of ``mmcv.imfrombytes``.
        channels: Number of image channels that the detector expects.
        mapped: Map files into memory instead of reading them whole, where their format allows it.

    Raises:
        ConfigError: If ``max_pixels`` or ``every`` is less than 1.
    """

    max_pixels: int | None = None
    recursive: bool = False
    every: int = 1
    decoding: tuple[tuple[str, Any], ...] = ()
    channels: int = 3
    mapped: bool = False

    def __post_init__(self) -> None:
        for name in ('max_pixels', 'every'):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise ConfigError(f'{name} must be an integer of at least 1, not {value!r}.')


class Item(NamedTuple):
    """One image, or the reason why it could not be read."""

    source: str
    frame: int | None  # None for images
    image: np.ndarray | None  # (H, W, 3) uint8 BGR; (H, W) for 1 channel, (H, W, n) for n
    error: str | None


class ImageSource(NamedTuple):
    """Source of one image or one video, read lazily."""

    name: str
    images: int  # expected number; for videos from the header
    open: Callable[[], Iterator[tuple[int | None, np.ndarray]]]
    note: str | None = None  # warning for the user, such as skipped files


def find_sources(inputs: Inputs, reading: Reading) -> list[ImageSource]:
    """List the sources that inputs refer to, in order; errors are raised when they are read.

    Args:
        inputs: Path of an image or video, folder, glob, http URL, array, PIL image, tensor, or
            several of them. Tensors are (C, H, W) or (N, C, H, W) in RGB: uint8, or floats in [0,
            1].
        reading: Options for finding and decoding.
    """
    if isinstance(inputs, (*NAMED, *PIXELS)):
        several: Iterable[Any] = [inputs]
    elif isinstance(inputs, (bytes, Mapping)) or hasattr(inputs, 'shape'):  # these are iterable too
        several = [inputs]
    else:
        several = inputs if isinstance(inputs, Iterable) else [inputs]
    number = itertools.count()
    found: list[ImageSource] = []
    for each in several:
        if isinstance(each, NAMED):
            try:
                found += _named(str(each), reading)
            except DataError as error:
                found.append(_failed(str(each), error))
            except OSError as error:  # name too long, or folder not accessible
                fault = DataError(f'{each} cannot be looked up: {error.strerror or error}.')
                found.append(_failed(str(each), fault))
        elif isinstance(each, PIXELS):
            batch = each if isinstance(each, Tensor) and each.ndim == 4 else [each]
            found += [_pixels(one, f'array {next(number)}', reading.channels) for one in batch]
        else:
            found.append(
                _failed(f'input {len(found)}', DataError(OTHER.format(type(each).__name__)))
            )
    if not found:
        found.append(_failed('the inputs', DataError('The list of inputs is empty: name images.')))
    return found


def read_items(sources: Iterable[ImageSource], channels: int = 3) -> Iterator[Item]:
    """Read all images one after another; an unreadable one gives an item with its error.

    Args:
        sources: Sources from :func:`find_sources`.
        channels: Number of channels to convert to, between colour and grey.
    """
    for source in sources:
        try:
            for frame, image in source.open():
                yield Item(source.name, frame, with_channels(image, channels, source.name), None)
        except DataError as error:
            yield Item(source.name, None, None, str(error))
        except (OSError, ValueError, cv2.error) as error:  # one bad input does not stop the rest
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            yield Item(source.name, None, None, f'{source.name} cannot be read: {reason[0]}')


def with_channels(image: np.ndarray, channels: int, name: str) -> np.ndarray:
    """Convert an image to this number of channels: grey from BGR, or BGR from grey.

    Args:
        image: ``(H, W)`` or ``(H, W, C)``.
        channels: Number of channels; 1 gives ``(H, W)``, as mmcv reads grey images.
        name: Name used in the message.

    Raises:
        DataError: If the conversion is not possible.
    """
    pixels = image[..., None] if image.ndim == 2 else image
    found = pixels.shape[2]
    if found != channels:
        if channels == 3 and found in (1, 4):
            pixels = np.repeat(pixels, 3, axis=2) if found == 1 else pixels[..., :3]
        elif channels == 1 and found in (3, 4):
            colours = np.ascontiguousarray(pixels[..., :3])
            pixels = cv2.cvtColor(colours, cv2.COLOR_BGR2GRAY)[..., None]
        else:
            raise DataError(
                f'{name} has {found} channels, but the detector takes {channels}: give images '
                f'with {channels}.'
            )
    return pixels[..., 0] if channels == 1 else pixels


def _named(name: str, reading: Reading) -> list[ImageSource]:
    if re.match(r'https?://', name):
        return [_address(name, reading)]
    if not name:
        raise DataError('An input is an empty string: name an image, a folder or a URL.')
    path = Path(name)
    if path.is_dir():
        return _folder(path, reading)
    if path.exists():
        return [_file(path, reading)]
    if glob.has_magic(name):
        matches = sorted(map(Path, glob.glob(name, recursive=True)), key=_natural)
        files = [each for each in matches if each.is_file()]
        if not files:
            raise DataError(f'The pattern {name} matches no file: correct it.')
        return [_file(each, reading) for each in files]
    cure = 'only URLs with http:// and https:// are fetched' if '://' in name else 'check the path'
    raise DataError(f'{name} does not exist: {cure}.')


def _folder(path: Path, reading: Reading) -> list[ImageSource]:
    entries = path.rglob('*') if reading.recursive else path.iterdir()
    try:
        files = sorted((each for each in entries if each.is_file()), key=_natural)
    except OSError as error:
        raise DataError(f'The folder {path} cannot be read: {error.strerror or error}.') from error
    images = [each for each in files if each.suffix.lower() in ENDINGS]
    if images:
        others = [each.name for each in files if each.suffix.lower() not in ENDINGS]
        found = [_file(each, reading) for each in images]
        found[0] = found[0]._replace(note=_passed_over(path, others))
        return found
    if not files:
        below = '' if reading.recursive else ' (subfolders are not searched)'
        raise DataError(f'The folder {path} is empty{below}: name one with images.')
    kinds = Counter(each.suffix.lower() or 'no ending' for each in files)
    listed = ', '.join(f'{kind} ({number})' for kind, number in kinds.most_common(4))
    raise DataError(f'The folder {path} has no images, only {listed}: name one with images.')


def _passed_over(folder: Path, names: list[str]) -> str | None:
    if not names:
        return None
    told = ', '.join(names[:NAMES_TOLD])
    rest = f' and {len(names) - NAMES_TOLD} more' if len(names) > NAMES_TOLD else ''
    files = '1 file' if len(names) == 1 else f'{len(names)} files'
    return (
        f'{files} in {folder} skipped, because the extensions are not those of images: {told}{rest}'
    )


def _file(path: Path, reading: Reading) -> ImageSource:
    ending = path.suffix.lower()
    name = str(path)
    if ending in VIDEO_ENDINGS:
        return ImageSource(name, _frame_count(path, reading.every), lambda: _frames(path, reading))
    if ending in ENDINGS or _is_image(path):
        read = partial(read_image, path, reading.max_pixels, **dict(reading.decoding))
        if reading.mapped:
            whole = read
            mapped = partial(map_image, path, reading.max_pixels)
            return ImageSource(name, 1, lambda: iter([(None, _first_of(mapped, whole))]))
        return ImageSource(name, 1, lambda: iter([(None, read())]))
    kind = f'the extension {ending}' if ending else 'no extension'
    known = ' '.join(sorted(ENDINGS | VIDEO_ENDINGS))
    return _failed(name, DataError(f'{name} has {kind}: use one of {known}.'))


def _first_of(
    mapped: Callable[[], np.ndarray | None], whole: Callable[[], np.ndarray]
) -> np.ndarray:
    image = mapped()
    return whole() if image is None else image


def _is_image(path: Path) -> bool:
    """Whether a file of another ending is an image by its content, as training would take it."""
    try:
        if is_endless(path):
            return False
        with path.open('rb') as file:
            return image_header(file) is not None
    except (OSError, ValueError):
        return False


def _pixels(value: Any, name: str, channels: int) -> ImageSource:
    """Source of an array, a tensor or a PIL image, which keeps its file name."""
    if isinstance(value, Image.Image):
        name = getattr(value, 'filename', '') or name

    def read() -> Iterator[tuple[int | None, np.ndarray]]:
        if isinstance(value, Image.Image):
            yield None, _of_pillow(value, name)
            return
        array = _of_tensor(value, name) if isinstance(value, Tensor) else value
        own = channels not in (1, 3) and array.ndim == 3 and array.shape[2] == channels
        if own and array.dtype == np.uint8 and array.size:
            yield None, array
        else:
            yield None, check_array(array, name)

    return ImageSource(name, 1, read)


def _of_pillow(image: Image.Image, name: str) -> np.ndarray:
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith('I'):  # 16-bit images: OpenCV takes the upper 8 bits
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return np.ascontiguousarray(np.asarray(upright.convert('RGB'))[..., ::-1])
    except Exception as error:  # Pillow may decode only here; formats raise their own types
        raise DataError(f'{name} cannot be decoded by Pillow: {error}.') from error


def _of_tensor(tensor: Tensor, name: str) -> np.ndarray:
    """Convert (C, H, W) or (H, W) to (H, W, C) in BGR."""
    values = tensor.detach().cpu()
    if values.is_floating_point():
        low, high = (float(each) for each in values.aminmax()) if values.numel() else (0.0, 0.0)
        if not 0 <= low <= high <= 1:
            raise DataError(
                f'{name} is a tensor of floats from {low:g} to {high:g}: give floats from 0 to 1, '
                'or uint8 from 0 to 255.'
            )
        values = (values.float() * 255).round().byte()
    array = values.numpy()
    if array.ndim != 3:
        return array
    array = np.moveaxis(array, 0, 2)
    return np.ascontiguousarray(array[..., ::-1]) if array.shape[2] == 3 else array


def _address(url: str, reading: Reading) -> ImageSource:
    def fetch() -> Iterator[tuple[int | None, np.ndarray]]:
        content = _download(url)
        yield None, decode_image(content, url, reading.max_pixels, **dict(reading.decoding))

    return ImageSource(url, 1, fetch)


def _failed(name: str, error: DataError) -> ImageSource:
    def fail() -> Iterator[tuple[int | None, np.ndarray]]:
        raise error

    return ImageSource(name, 1, fail)


def _download(url: str) -> bytes:
    if Path(urlsplit(url).path).suffix.lower() in VIDEO_ENDINGS:
        raise DataError(f'{url} is a video: download it and name the file.')
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
            content = answer.read(MAX_DOWNLOAD + 1)
    except urllib.error.HTTPError as error:
        raise DataError(f'{url} cannot be fetched: HTTP status {error.code}.') from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, 'reason', error)
        raise DataError(f'{url} cannot be fetched ({reason}): check the URL.') from error
    if len(content) > MAX_DOWNLOAD:
        raise DataError(f'{url} is larger than {MAX_DOWNLOAD >> 20} MiB: download it by hand.')
    return content


def _frame_count(path: Path, every: int) -> int:
    capture = cv2.VideoCapture(str(path))
    try:
        return max(1, -(-int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) // every))
    finally:
        capture.release()


def _frames(path: Path, reading: Reading) -> Iterator[tuple[int | None, np.ndarray]]:
    """Frames of a video with their numbers, decoded on demand."""
    capture = cv2.VideoCapture(str(path))
    try:
        width, height = (
            int(capture.get(each)) for each in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        fault = too_large(width * height, reading.max_pixels)
        if fault is not None:
            raise DataError(f'Each frame of {path} {fault}: the video is not read.')
        for number in itertools.count():
            if not capture.grab():
                break
            if number % reading.every == 0:
                decoded, image = capture.retrieve()
                if not decoded:
                    break
                yield number, image
        if not number:
            raise DataError(f'{path} is damaged or in a format that OpenCV cannot decode.')
    finally:
        capture.release()


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts 10.png after 9.png."""
    parts = re.split(r'(\d+)', str(path))
    return [(0, int(part), '') if part.isdigit() else (1, 0, part) for part in parts]
