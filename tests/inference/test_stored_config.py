"""The config in a checkpoint is data: it is parsed, never run, and names nothing but detectors."""

from __future__ import annotations

import builtins
import os
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

import gfl_det
from gfl_det.errors import CheckpointError
from gfl_det.inference.stored_config import parse, stored_config
from tests.helpers.inferring import small_config, write_checkpoint

# One a family: writing a config as text takes mmengine seconds.
CONFIGS = ('gfl_r18_fpn_bccd', 'gfl_v2_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco')


@pytest.mark.parametrize('name', CONFIGS)
def test_a_shipped_config_is_read_as_if_it_were_run(tmp_path, name: str) -> None:
    cfg = gfl_det.get_config(name)
    text = cfg.pretty_text  # what mmengine writes into checkpoints
    path = tmp_path / 'config.py'
    path.write_text(text)
    assert parse(text) == Config.fromfile(path, import_custom_modules=False).to_dict()
    found = stored_config(dict(cfg=text), 'x.pth')
    assert found.model == cfg.model
    assert found.test_dataloader.dataset.pipeline == cfg.test_dataloader.dataset.pipeline


@pytest.mark.parametrize(
    'line',
    [
        'import os',
        'model = open("x").read()',
        'model = dict(**{"type": "GFL"})',
        'model = dict([("type", "GFL")])',
        'model = {**dict(type="GFL")}',
        'model = [each for each in (1, 2)]',
        'model = __import__("os").system("true")',
        'model = f"{1}"',
        'model = (lambda: 1)()',
        'model.type = "GFL"',
        'model = other = 1',
        'model: dict = dict()',
        'exec("1")',
        'def model(): pass',
        'model = 1 if True else 2',
        'model = ' + '(' * 300 + ')' * 300,
        'model = ',
    ],
)
def test_anything_but_values_is_refused(line: str, monkeypatch) -> None:
    for name in ('open', 'exec'):
        monkeypatch.setattr(builtins, name, lambda *_: pytest.fail('was run'))
    monkeypatch.setattr(os, 'system', lambda *_: pytest.fail('was run'))
    with pytest.raises(CheckpointError, match=r'x\.pth .*not run'):
        stored_config(dict(cfg=f'{line}\n'), 'x.pth')


def evil(change) -> str:
    cfg = small_config()
    change(cfg)
    return cfg.pretty_text


CALL = "__import__('os').system('true')"


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda cfg: cfg.model.bbox_head.update(type='os.system'), "asks for 'os.system'"),
        (lambda cfg: cfg.model.update(type='subprocess.Popen'), 'subprocess'),
        (lambda cfg: cfg.model.update(type='antigravity'), "'antigravity', unknown here"),
        (lambda cfg: cfg.model.update(type='gfl_det.cli.main.run'), 'no package'),
        (lambda cfg: cfg.model.test_cfg.nms.update(type=CALL), 'no package'),
        (lambda cfg: cfg.model.backbone.update(_scope_='antigravity'), 'no package'),
        (lambda cfg: cfg.update(default_scope='antigravity'), "the scope 'antigravity'"),
        (
            lambda cfg: cfg.test_dataloader.dataset.pipeline.insert(0, dict(type='os.system')),
            'os.system',
        ),
        (lambda cfg: cfg.pop('model'), 'has no model'),
    ],
)
def test_names_lead_nowhere_else(tmp_path, change, match, monkeypatch) -> None:
    """mmengine would import and call them, and mmcv evaluates the type of an NMS."""
    monkeypatch.setattr(os, 'system', lambda *_: pytest.fail('was run'))
    path = write_checkpoint(tmp_path, text=evil(change))
    with pytest.raises(CheckpointError, match=match):
        gfl_det.GFLInferencer(path, device='cpu')
    assert 'antigravity' not in sys.modules


def test_imports_that_a_config_asks_for_are_not_made(tmp_path: Path) -> None:
    text = evil(lambda cfg: cfg.custom_imports.update(imports=['antigravity']))
    gfl_det.GFLInferencer(write_checkpoint(tmp_path, text=text), device='cpu')
    assert 'antigravity' not in sys.modules


@pytest.mark.parametrize('meta', [{}, dict(cfg=''), dict(cfg=7)])
def test_without_a_config_one_is_asked_for(meta) -> None:
    with pytest.raises(CheckpointError, match=r'x\.pth .*no config'):
        stored_config(meta, 'x.pth')
