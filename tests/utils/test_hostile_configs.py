"""Malformed configs and calibrators: one sentence each; YAML is data, and JSON is nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import pytest

from gfl_det import calibration
from gfl_det.calibration.calibrators import FitSource
from gfl_det.calibration.files import load_any_calibrator, load_interval_calibrator
from gfl_det.engine import config_edits, runner
from gfl_det.engine.preflight import check_training
from gfl_det.errors import ConfigError, DataError
from gfl_det.inference.export.graph import Preprocessing
from gfl_det.inference.export.onnx_file import Description
from gfl_det.utils.config import load_config
from tests.helpers.annotation_files import ODD
from tests.helpers.calibration_cases import scene
from tests.helpers.refusing import refusal

pytestmark = pytest.mark.usefixtures('bounds')

CONFIGS = {
    'empty.py': '',
    'syntax.py': 'model = dict(',
    'tabs.py': 'if True:\n\ta = 1\n        b = 2\n',
    'zero.py': 'a = 1\0',
    'raises.py': 'raise RuntimeError("x")',
    'exits.py': 'import sys\nsys.exit(0)',
    'itself.py': '_base_ = "itself.py"',
    'missing_base.py': '_base_ = "nowhere.py"',
    'odd_base.py': '_base_ = 5',
    'odd_bases.py': '_base_ = [5, None]',
    'foreign_base.py': '_base_ = "nobody::x.py"',
    'reserved.py': 'filename = "x"',
    'template.py': 'a = "{{ fileDirname"',
    'base_variable.py': 'a = _base_.nothing',
    'no_model.py': 'work_dir = "x"',
    'model_text.py': 'model = "x"\nwork_dir = "x"',
    'model_none.py': 'model = None',
    'model_argument.py': 'model = dict(type="GFL", backbone=5, colour="red")',
    'model_type.py': 'model = dict(type="Nobody")',
    'imports.py': 'custom_imports = dict(imports=["nobody_at_all"])',
    'odd_imports.py': 'custom_imports = 5',
    'loader.py': 'model = dict(type="GFL")\ntrain_dataloader = 5',
    'dataset.py': 'model = dict(type="GFL")\ntrain_dataloader = dict(dataset=None)',
    'delete.py': '_base_ = "no_model.py"\nwork_dir = dict(_delete_=True)',
    'array.json': '[1, 2]',
    'number.json': '5',
    'torn.json': '{"model": {',
    'deep.json': '[' * 100_000,
    'empty.json': '',
    'bytes.json': '\ufeff{}',
    'empty.yaml': '',
    'list.yaml': '- 1\n- 2\n',
    'torn.yaml': 'model: {',
    'tabs.yaml': 'a:\n\tb: 1',
    'unknown.yaml': 'model: !nobody x',
    'apply.yaml': 'model: !!python/object/apply:os.system ["echo x > CANARY"]',
    'new.yaml': 'model: !!python/object/new:os.system ["echo x > CANARY"]',
    'name.yaml': 'model: !!python/name:os.system',
    'module.yml': 'model: !!python/module:antigravity',
    'deep.yaml': 'a: ' + '[' * 20_000,
    'picture.png': '\u0089PNG',
    'pickle.pkl': 'cos\nsystem\n(S"echo x > CANARY"\ntR.',
    'text.txt': 'model = 1',
}


@pytest.mark.parametrize('name', CONFIGS)
def test_each_config_is_read_or_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    canary = tmp_path / 'canary'
    for each in {name, 'no_model.py'}:
        (tmp_path / each).write_text(CONFIGS[each].replace('CANARY', str(canary)))

    def prepare(path: Path) -> None:
        cfg = load_config(str(path))
        cfg.work_dir = str(tmp_path / 'work')
        config_edits.log_assignment(cfg)
        check_training(cfg)
        runner.build_runner(cfg)

    said = refusal(prepare, tmp_path / name)
    assert said  # none of them is a whole config
    assert not canary.exists()


def test_yaml_runs_nothing_and_keeps_what_mmengine_writes(tmp_path: Path) -> None:
    path = tmp_path / 'x.yaml'
    value = dict(model=dict(type='GFL', scales=[1, 2.5], size=(3, 4), name=None))
    mmengine.dump(value, str(path))
    assert '!!python/tuple' in path.read_text()
    assert mmengine.load(str(path)) == value
    path.write_text('a: !!python/object/apply:os.getcwd []')
    with pytest.raises(ConfigError, match=r'x\.yaml .*ConstructorError'):
        load_config(str(path))


def test_a_config_that_ends_the_program_does_not_end_the_tool(tmp_path: Path) -> None:
    path = tmp_path / 'exits.py'
    path.write_text(CONFIGS['exits.py'])
    with pytest.raises(ConfigError, match='ends the program'):
        load_config(str(path))


def score_calibrator(path: Path) -> None:
    rng = np.random.default_rng(0)
    gts = [(i, i % 2, (10 * i, 0, 8, 8), False) for i in range(12)]
    found = [(i, i % 2, (10 * i, rng.integers(4), 8, 8), rng.uniform(0.2, 0.9)) for i in range(12)]
    data = scene(gts, found, ('cat', 'dog'), images=12)
    calibrator = calibration.fit_calibrator(
        *data, calibration.Settings('isotonic', tau=0.3, cuts=('lrp', 0.2)), 'GFLHead'
    )
    calibration.save_calibrator(calibrator, path)


def interval_calibrator(path: Path) -> None:
    calibrator = calibration.IntervalCalibrator(
        (0.5, 0.9),
        ((0.5, 1.0, 1.5, 2.0), (1.0, 1.0, 2.0, 4.0)),
        'GFLHead',
        ('cat', 'dog'),
        0.5,
        FitSource('00ff', ('a', 'b'), 50),
    )
    calibration.save_interval_calibrator(calibrator, path)


WRITERS = {
    score_calibrator: load_any_calibrator,
    interval_calibrator: load_interval_calibrator,
}


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to each value of a JSON document; of lists only to the first."""
    yield path
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value[:1])
        for key, inner in items:
            yield from places(inner, (*path, key))


def changed(content: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    content = copy.copy(content)
    content[path[0]] = changed(content[path[0]], path[1:], value)
    return content


@pytest.mark.parametrize('write', WRITERS)
def test_a_calibrator_with_any_other_value_is_used_or_refused(tmp_path: Path, write) -> None:
    path = tmp_path / 'calibrator.json'
    write(path)
    content = json.loads(path.read_text())
    count = refused = 0
    for way in list(places(content)):
        for value in ODD.values():
            path.write_text(json.dumps(changed(content, way, value)))
            count += 1
            said = refusal(WRITERS[write], path)
            refused += said is not None
    assert count > 200
    assert refused > count / 2


@pytest.mark.parametrize(
    'text', ['', '{', '[' * 100_000, 'null', '\0', '{"format": []}', '9' * 9999]
)
def test_files_that_are_no_calibrators(tmp_path: Path, text: str) -> None:
    path = tmp_path / 'calibrator.json'
    path.write_text(text)
    for load in WRITERS.values():
        with pytest.raises(DataError, match=r'calibrator\.json is not '):
            load(path)


def test_a_model_file_cannot_name_code_as_its_suppression(tmp_path: Path) -> None:
    """mmcv evaluates the type of an NMS config; a description is data."""
    canary = tmp_path / 'ran'
    spell = f"__import__('pathlib').Path({str(canary)!r}).touch"
    nms = dict(type=spell, iou_threshold=0.5)
    sound = dict(name='x', head='GFLHead', classes=['a'], outputs=['boxes'], nms=False)
    told = Description(
        **sound, preprocessing=Preprocessing((9, 9)), settings=dict(nms=nms), calibrated=False
    )
    text = told.to_json()
    with pytest.raises(DataError, match='nms of the type'):
        Description.from_json(text, 'x.onnx')
    assert not canary.exists()


def test_a_model_file_that_describes_itself_wrongly() -> None:
    for text in ('', '{', '[]', 'null', '{"format": 1}', '[' * 100_000, '"x"'):
        with pytest.raises(DataError, match=r'x\.onnx'):
            Description.from_json(text, 'x.onnx')
