"""Uploaded images, which may be anything: sizes are judged before anything is decoded."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gfl_det.errors import DataError
from gfl_det.utils.pixels import header_of, pillow_opens

FORMATS = ['JPEG', 'PNG', 'WEBP', 'BMP']


class UploadLimits(NamedTuple):
    """What an upload may be."""

    max_bytes: int = 10 * 2**20
    max_pixels: int = 20_000_000


def decode_upload(content: bytes, limits: UploadLimits) -> np.ndarray:
    """Decode an image, upright as its EXIF orientation says.

    Args:
        content: a whole file.
        limits: of its size.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        DataError: the file is too large, has too many pixels (its header is asked, so that a small
            file cannot unfold into gigabytes), is damaged, or not an image of a known format.
    """
    if len(content) > limits.max_bytes:
        raise DataError(too_large(limits))
    header = header_of(content, FORMATS)
    if header is None:
        raise DataError(f'This file is not an image: send {", ".join(FORMATS)}.')
    if header.pixels > limits.max_pixels:
        raise DataError(
            f'This image has {header.pixels / 1e6:,.3g} megapixels: send one of at most '
            f'{limits.max_pixels / 1e6:,.3g}.'
        )
    try:
        with pillow_opens(header.pixels):
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            return np.array(ImageOps.exif_transpose(image).convert('RGB'))
    except Exception as error:  # a damaged file fails in any way at all
        raise DataError('This image is damaged or cut off: send it again.') from error


def too_large(limits: UploadLimits) -> str:
    """The sentence for an upload of too many bytes."""
    return f'This file is too large: send one of at most {limits.max_bytes / 2**20:.3g} MiB.'


def accepted(limits: UploadLimits) -> str:
    """What may be sent, for the page."""
    return (
        f'{", ".join(FORMATS)}; at most {limits.max_bytes / 2**20:.3g} MiB and '
        f'{limits.max_pixels / 1e6:.3g} megapixels'
    )
