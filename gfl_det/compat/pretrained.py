"""Pretrained weights by name or URL: finding and safely loading their files.

mmengine's own loaders need torchvision for a table of URLs and pass downloads to ``torch.hub``,
which unpickles them without restrictions.
"""

from __future__ import annotations

import difflib
import os
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlparse

import mmengine
import torch
from mmengine.dist import barrier
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from gfl_det.compat.checkpoint import MapLocation, load_file
from gfl_det.errors import CheckpointError

WEB = ('http://', 'https://')
TORCHVISION = ('torchvision://', 'modelzoo://')
OPENMMLAB = ('open-mmlab://', 'openmmlab://')
MMCLS = ('mmcls://',)


class PretrainedFile(NamedTuple):
    """Location of the weights of a name."""

    checkpoint: str  # requested name
    url: str | None  # URL; None for a local file
    path: str  # path, possibly of a future download
    cached: bool  # whether the file exists


def install() -> None:
    """Make mmengine load names known to ``resolve`` with this module, without torchvision."""
    CheckpointLoader.register_scheme(WEB, load_from_http, force=True)
    CheckpointLoader.register_scheme(TORCHVISION, load_from_torchvision, force=True)
    CheckpointLoader.register_scheme(OPENMMLAB, load_from_openmmlab, force=True)
    CheckpointLoader.register_scheme(MMCLS, load_from_mmcls, force=True)


def resolve(checkpoint: str) -> PretrainedFile:
    """Locate the weights of a name without network access.

    Args:
        checkpoint: ``torchvision://resnet50``, ``open-mmlab://...``, ``mmcls://...``, a URL, or a
            path. Other schemes (``s3://``) are left to mmengine and returned unchanged.

    Raises:
        CheckpointError: If the name is missing in mmengine's table of its scheme.
    """
    scheme, separator, name = checkpoint.partition('://')
    prefix = scheme + separator
    location = checkpoint
    if prefix in TORCHVISION:
        location = _look_up(checkpoint, name, _torchvision_addresses(name))
    elif prefix in OPENMMLAB:
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
        location = _look_up(checkpoint, name, mmengine_checkpoint.get_external_models())
        if not location.startswith(WEB):  # a local file in mmengine's table, added by the user
            location = os.path.join(mmengine_checkpoint._get_mmengine_home(), location)
    elif prefix in MMCLS:
        location = _look_up(checkpoint, name, mmengine_checkpoint.get_mmcls_models())
    if location.startswith(WEB):
        file_name = os.path.basename(urlparse(location).path)
        path = os.path.join(torch.hub.get_dir(), 'checkpoints', file_name)
        return PretrainedFile(checkpoint, location, path, os.path.isfile(path))
    if separator and location == checkpoint:
        return PretrainedFile(checkpoint, checkpoint, checkpoint, False)
    path = os.path.expanduser(location)
    return PretrainedFile(checkpoint, None, path, os.path.isfile(path))


def load_from_http(filename: str, map_location: MapLocation = None) -> dict[str, Any]:
    """Load weights by name or URL; one process per machine downloads, the others wait.

    Args:
        filename: Argument of :func:`resolve`.
        map_location: As in ``torch.load``.

    Raises:
        CheckpointError: If the name is unknown, the download fails, or the file is unusable (see
            :func:`gfl_det.compat.checkpoint.load_file`).
    """
    weights = resolve(filename)
    try:
        if weights.url and not weights.cached and os.environ.get('LOCAL_RANK', '0') == '0':
            download(weights.url, weights.path)
    finally:  # after a failure, the other processes must not wait forever
        barrier()
    return load_file(weights.path, map_location)


def load_from_torchvision(filename: str, map_location: MapLocation = None) -> dict[str, Any]:
    """Load ``torchvision://`` weights (one loader per scheme, since mmengine logs its name)."""
    return load_from_http(filename, map_location)


def load_from_openmmlab(filename: str, map_location: MapLocation = None) -> dict[str, Any]:
    """Load ``open-mmlab://`` weights."""
    return load_from_http(filename, map_location)


def load_from_mmcls(filename: str, map_location: MapLocation = None) -> dict[str, Any]:
    """Load only the backbone of ``mmcls://`` classifier weights, like mmengine."""
    checkpoint = load_from_http(filename, map_location)
    state = checkpoint.get('state_dict', checkpoint)
    part = 'backbone.'
    return {'state_dict': {k[len(part) :]: v for k, v in state.items() if k.startswith(part)}}


def _torchvision_addresses(name: str) -> dict[str, str]:
    table = os.path.join(mmengine.__path__[0], 'hub', 'torchvision_0.12.json')
    addresses = mmengine.load(table)
    if name in addresses:
        return addresses
    try:  # torchvision has more names, such as resnet50.imagenet1k_v2
        return mmengine_checkpoint.get_torchvision_models()
    except (ImportError, OSError, RuntimeError):  # missing, or built for another torch
        return addresses


def _look_up(checkpoint: str, name: str, addresses: dict[str, str]) -> str:
    if name in addresses:
        return addresses[name]
    close = difflib.get_close_matches(name, addresses, n=1)
    hint = f'did you mean {close[0]}?' if close else f'there are {", ".join(sorted(addresses))}.'
    raise CheckpointError(f'There are no weights named {checkpoint}: {hint}')


def download(url: str, path: str, hash_prefix: str | None = None) -> None:
    """Download a file; failed downloads leave nothing behind.

    Args:
        url: URL of the file.
        path: Destination, whose folder is created.
        hash_prefix: Required beginning of the SHA-256; None: no check.

    Raises:
        CheckpointError: If the download fails or the SHA-256 differs.
    """
    print_log(f'Downloading {url} to {path}', 'current')
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        torch.hub.download_url_to_file(url, path, hash_prefix, progress=os.isatty(2))
    except (OSError, ValueError, HTTPException, RuntimeError) as error:
        # No network, no such file, no space; RuntimeError: the SHA-256 differs.
        raise CheckpointError(
            f'The weights {url} cannot be downloaded ({error}): get the file on a machine with '
            f'network and put it at {path}.'
        ) from error
