"""Weights by name: what others publish for GFL, LD and NanoDet-Plus, and how a file gets here.

MMDetection's addresses are in the metafiles that it installs beside its configs, those of
NanoDet-Plus stand below. A file is fetched once into torch's cache, and its SHA-256 must begin as
its name says; the names of NanoDet-Plus's release say nothing of it. Nothing but Python's own
library is imported with this module, so that listing the names takes no time.
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
NANODET = 'nanodet'  # in the place of a folder: the authors' release, under their names of weights
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
# Of the detectors that run, counted (the metafiles do not say): millions.
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
    """A detector whose weights can be had by its name."""

    name: str
    folder: str  # of mmdet's configs, or 'nanodet'
    ap: float  # box AP on COCO val2017 in percent, as published
    url: str

    @property
    def path(self) -> Path:
        """Where the file is, or will be once it is fetched."""
        return cache_folder() / os.path.basename(urlsplit(self.url).path)

    @property
    def parameters(self) -> int | None:
        """How many there are; None where nobody has counted."""
        millions = PARAMETERS.get(self.name)
        return None if millions is None else round(millions * 1e6)

    @property
    def size(self) -> int | None:
        """Bytes of the file, where it is not here as the parameters will have."""
        if self.path.is_file():
            return self.path.stat().st_size
        # The release of NanoDet-Plus holds the state of its training too.
        if self.folder == NANODET:
            return None
        return None if self.parameters is None else FLOAT_BYTES * self.parameters


def cache_folder() -> Path:
    """The folder that ``torch.hub`` keeps weights in (``TORCH_HOME`` moves it)."""
    base = os.environ.get('TORCH_HOME') or os.path.join(
        os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache'), 'torch'
    )
    return Path(base).expanduser() / 'hub' / 'checkpoints'


@cache
def published_models() -> tuple[PublishedModel, ...]:
    """All of them: in the order of mmdet's metafiles, then NanoDet-Plus.

    Raises:
        SetupError: mmdet is not installed, or its metafiles are not.
    """
    import yaml

    found = []
    for folder in FOLDERS:
        path = config_folder() / folder / 'metafile.yml'
        try:
            content = yaml.safe_load(path.read_text(encoding='utf-8'))
        except (OSError, yaml.YAMLError) as error:
            raise SetupError(
                f'{path} cannot be read ({error}): install mmdet again with pip.'
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
    """The folder of mmdet's configs.

    Raises:
        SetupError: mmdet is not installed, or its configs are not.
    """
    spec = find_spec('mmdet')
    folder = Path(((spec and spec.submodule_search_locations) or ['mmdet'])[0], '.mim', 'configs')
    if not folder.is_dir():
        raise SetupError(f'mmdet has no configs at {folder}: install it again with pip.')
    return folder


def find_published(name: str) -> PublishedModel | None:
    """The published model of this name; None where there is none."""
    return next((each for each in published_models() if each.name == name), None)


def refuse_unpublished(name: str) -> None:
    """Say of a name that no weights are published under it.

    Raises:
        CheckpointError: always.
    """
    names = [each.name for each in published_models()]
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f' (did you mean {nearest[0]}?)' if nearest else ''
    raise CheckpointError(
        f'There are no published weights named {name}{hint}: name a checkpoint file, or one of '
        f'{", ".join(names)}.'
    )


def fetch(model: PublishedModel) -> Path:
    """The file of a model, which is fetched unless it is there; checked against its name.

    Raises:
        CheckpointError: it cannot be fetched, or is not what its name says.
    """
    from gfl_det.compat.pretrained import download  # torch, which is slow to import

    expected = HASH.search(model.url)
    path = model.path
    if not path.is_file():
        download(model.url, str(path), expected and expected[1])
    elif expected and not _sum(path).startswith(expected[1]):
        raise CheckpointError(
            f'The file {path} is damaged, as its SHA-256 does not begin with {expected[1]}: '
            f'remove it, and it is fetched again from {model.url}.'
        )
    return path


def config_of(model: PublishedModel) -> Config:
    """The config that a published model runs with: the shipped one of its name, or mmdet's.

    Of a distilled student it is the student alone, whose weights are all that is published.
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
