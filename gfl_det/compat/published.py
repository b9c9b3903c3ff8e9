"""Published weights of GFL, LD and NanoDet-Plus by name, and their download.

MMDetection's URLs come from the metafiles installed beside its configs; NanoDet-Plus's are listed
below. A file is downloaded once into torch's cache, and its SHA-256 must begin as stated in its
name; NanoDet-Plus's names state none. This module imports only the standard library, so listing
names is fast.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from gfl_det.errors import CheckpointError, SetupError

if TYPE_CHECKING:
    from mmengine.config import Config

FOLDERS = ('gfl', 'ld')
NANODET = 'nanodet'  # folder name of the authors' release
NANODET_URL = (
    'https://github.com/RangiLyu/nanodet/releases/download/v1.0.0-alpha-1/{}_checkpoint.ckpt'
)
NANODET_AP = {
    'nanodet-plus-m_320_coco': 27.0,
    'nanodet-plus-m_416_coco': 30.4,
    'nanodet-plus-m-1.5x_416_coco': 34.1,
}
HASH = re.compile(r'-([0-9a-f]{8,})\.pth$')
READ_BYTES = 2**20
# Counted parameters in millions (the metafiles state none).
PARAMETERS = {
    'gfl_r50_fpn_1x_coco': 32.44,
    'gfl_r50_fpn_ms-2x_coco': 32.44,
    'gfl_r101_fpn_ms-2x_coco': 51.43,
    'gfl_r101-dconv-c3-c5_fpn_ms-2x_coco': 52.72,
    'gfl_x101-32x4d_fpn_ms-2x_coco': 51.06,
    'gfl_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco': 53.47,
    'ld_r18-gflv1-r101_fpn_1x_coco': 19.42,
    'ld_r34-gflv1-r101_fpn_1x_coco': 29.53,
    'ld_r50-gflv1-r101_fpn_1x_coco': 32.44,
    'ld_r101-gflv1-r101-dcn_fpn_2x_coco': 51.43,
    'nanodet-plus-m_320_coco': 1.20,
    'nanodet-plus-m_416_coco': 1.20,
    'nanodet-plus-m-1.5x_416_coco': 2.48,
}
FLOAT_BYTES = 4


class PublishedModel(NamedTuple):
    """Detector with published weights."""

    name: str
    folder: str  # of mmdet's configs, or 'nanodet'
    ap: float  # box AP on COCO val2017 in percent, as published
    url: str

    @property
    def path(self) -> Path:
        """Path of the file, possibly of a future download."""
        return cache_folder() / os.path.basename(urlsplit(self.url).path)

    @property
    def parameters(self) -> int | None:
        """Number of parameters; None if not counted."""
        millions = PARAMETERS.get(self.name)
        return None if millions is None else round(millions * 1e6)

    @property
    def size(self) -> int | None:
        """Bytes of the file; before the download, estimated from the parameters."""
        if self.path.is_file():
            return self.path.stat().st_size
        # NanoDet-Plus's release also holds its training state.
        if self.folder == NANODET:
            return None
        return None if self.parameters is None else FLOAT_BYTES * self.parameters


def cache_folder() -> Path:
    """Weight folder of ``torch.hub`` (``TORCH_HOME`` moves it)."""
    base = os.environ.get('TORCH_HOME') or os.path.join(
        os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache'), 'torch'
    )
    return Path(base).expanduser() / 'hub' / 'checkpoints'


@cache
def published_models() -> tuple[PublishedModel, ...]:
    """All published models, in the order of mmdet's metafiles, then NanoDet-Plus.

    Raises:
        SetupError: If mmdet or its metafiles are not installed.
    """
    import yaml

    found = []
    for folder in FOLDERS:
        path = config_folder() / folder / 'metafile.yml'
        try:
            content = yaml.safe_load(path.read_text(encoding='utf-8'))
        except (OSError, yaml.YAMLError) as error:
            raise SetupError(
                f'{path} cannot be read ({error}): reinstall mmdet with pip.'
            ) from error
        for model in content['Models']:
            if model.get('Weights'):
                ap = model['Results'][0]['Metrics']['box AP']
                found.append(PublishedModel(model['Name'], folder, float(ap), model['Weights']))
    for name, ap in NANODET_AP.items():
        url = NANODET_URL.format(name.removesuffix('_coco'))
        found.append(PublishedModel(name, NANODET, ap, url))
    return tuple(found)


def config_folder() -> Path:
    """Folder of mmdet's configs.

    Raises:
        SetupError: If mmdet or its configs are not installed.
    """
    spec = find_spec('mmdet')
    folder = Path(((spec and spec.submodule_search_locations) or ['mmdet'])[0], '.mim', 'configs')
    if not folder.is_dir():
        raise SetupError(f'mmdet has no configs at {folder}: reinstall mmdet with pip.')
    return folder


def find_published(name: str) -> PublishedModel | None:
    """Published model of a name; None if there is none."""
    return next((each for each in published_models() if each.name == name), None)


def refuse_unpublished(name: str) -> None:
    """Raise an error for a name without published weights.

    Raises:
        CheckpointError: Always.
    """
    names = [each.name for each in published_models()]
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f' (did you mean {nearest[0]}?)' if nearest else ''
    raise CheckpointError(
        f'There are no published weights named {name}{hint}: name a checkpoint file, or one of '
        f'{", ".join(names)}.'
    )


def fetch(model: PublishedModel) -> Path:
    """Return a model's file, downloaded if missing and checked against the hash in its name.

    Raises:
        CheckpointError: If the file cannot be downloaded or does not match its hash.
    """
    from gfl_det.compat.pretrained import download  # imports torch, which is slow

    expected = HASH.search(model.url)
    path = model.path
    if not path.is_file():
        download(model.url, str(path), expected and expected[1])
    elif expected and not _sum(path).startswith(expected[1]):
        raise CheckpointError(
            f'The file {path} is damaged, as its SHA-256 does not begin with {expected[1]}: '
            f'remove it to download it again from {model.url}.'
        )
    return path


def config_of(model: PublishedModel) -> Config:
    """Config of a published model: the shipped one of its name, or mmdet's.

    For a distilled model it describes only the student, whose weights are published.
    """
    from mmengine.config import Config

    from gfl_det.utils.config import config_names, get_config

    own = model.name in config_names()
    theirs = config_folder() / model.folder / f'{model.name}.py'
    cfg = get_config(model.name) if own else Config.fromfile(theirs)
    detector: dict[str, Any] = cfg.model
    if 'teacher_config' in detector:
        for key in ('teacher_config', 'teacher_ckpt', 'output_feature'):
            detector.pop(key, None)
        for key in ('loss_ld', 'loss_kd'):
            detector['bbox_head'].pop(key, None)
        detector['type'] = 'GFL'
        detector['bbox_head']['type'] = 'gfl_det.GFLHead'
    return cfg


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
