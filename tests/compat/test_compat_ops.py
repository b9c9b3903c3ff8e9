"""The stand-in for mmcv's operators: what it offers, what it refuses, and when it steps aside."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS

from gfl_det import compat
from gfl_det.compat import ops
from gfl_det.errors import MissingOpError
from tests.helpers.paths import ROOT

BARE = f"""
import sys, types
sys.path.insert(0, {str(ROOT)!r})
package = types.ModuleType('gfl_det')  # its own imports would need a whole mmdet
package.__path__ = [{str(ROOT / 'gfl_det')!r}]
sys.modules['gfl_det'] = package
from gfl_det.compat import ops
from gfl_det.errors import SetupError
"""

stand_in_only = pytest.mark.skipif(
    not ops.stand_in_is_used(), reason='this mmcv has compiled operators'
)


def run(code: str, *search_path: Path) -> str:
    """Run code in a fresh interpreter; returns what it prints."""
    path = ''.join(f'sys.path.insert(0, {str(folder)!r})\n' for folder in search_path)
    command = [sys.executable, '-c', f'import sys\n{path}{code}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fake_mmcv(folder: Path, extension: str) -> Path:
    (folder / 'mmcv').mkdir()
    (folder / 'mmcv' / '__init__.py').touch()
    (folder / 'mmcv' / '_ext.py').write_text(extension)
    return folder


def resnet_with(convolution: str) -> torch.nn.Module:
    dcn = dict(type=convolution, deform_groups=1, fallback_on_stride=False)
    stages = (False, False, False, True)
    return MODELS.build(dict(type='mmdet.ResNet', depth=50, dcn=dcn, stage_with_dcn=stages))


@stand_in_only
def test_the_stand_in_looks_like_an_imported_module() -> None:
    import mmcv

    module = sys.modules['mmcv._ext']
    assert mmcv._ext is module
    assert importlib.import_module('mmcv._ext') is module
    assert importlib.util.find_spec('mmcv._ext') is module.__spec__
    assert not hasattr(module, '__path__')
    assert not hasattr(module, '_private')


@stand_in_only
def test_operators_pickle_by_name() -> None:
    extension = sys.modules['mmcv._ext']
    for operator in (extension.nms, extension.softnms, extension.roi_align_forward):
        assert pickle.loads(pickle.dumps(operator)) == operator


@stand_in_only
def test_an_operator_that_is_missing_is_refused_with_the_line_that_builds_it() -> None:
    from mmcv.ops import RoIAlign

    layer = RoIAlign(7)  # so that configs and state dicts can be looked at
    with pytest.raises(
        MissingOpError, match='roi_align_forward exists only in compiled mmcv'
    ) as caught:
        layer(torch.zeros(1, 3, 9, 9), torch.zeros(1, 5))
    assert ops.BUILD_LINE in str(caught.value)


@pytest.mark.parametrize('name', ['DCN', 'DCNv2'])
def test_deformable_convolution_runs(name: str) -> None:
    assert resnet_with(name)(torch.zeros(1, 3, 96, 96))[-1].shape == (1, 2048, 3, 3)


def test_mmcvs_functions_run() -> None:
    from mmcv.ops import batched_nms, nms, soft_nms

    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], dtype=np.float32)
    scores = np.array([0.6, 0.9, 0.1], dtype=np.float32)
    dets, kept = nms(boxes, scores, 0.5)
    assert kept.tolist() == [1, 2]
    np.testing.assert_array_equal(dets, np.column_stack((boxes, scores))[[1, 2]])
    assert nms(boxes, scores, 0.5, score_threshold=0.2)[1].tolist() == [1]
    assert nms(boxes, scores, 0.95, max_num=2)[1].tolist() == [1, 0]

    dets, kept = soft_nms(boxes, scores, 0.5, min_score=0.07, method='linear')
    assert kept.tolist() == [1, 2]  # the IoU of .9 leaves .06 of the other
    boxes, scores = torch.from_numpy(boxes), torch.from_numpy(scores)
    dets, kept = batched_nms(
        boxes, scores, torch.tensor([0, 1, 0]), dict(type='nms', iou_threshold=0.5)
    )
    assert kept.tolist() == [1, 0, 2]  # different classes do not suppress each other
    settings = dict(type='soft_nms', iou_threshold=0.5, min_score=0.07)
    dets, kept = batched_nms(boxes, scores, torch.tensor([0, 0, 0]), settings)
    assert kept.tolist() == [1, 2]


def test_install_again_changes_nothing() -> None:
    before = sys.modules['mmcv._ext'], list(sys.meta_path)
    compat.install()
    compat.install.__wrapped__()  # not even where the first call is forgotten
    assert (sys.modules['mmcv._ext'], list(sys.meta_path)) == before


def test_compiled_operators_are_never_shadowed(tmp_path: Path) -> None:
    folder = fake_mmcv(tmp_path, 'def nms(): return "compiled"')
    code = """
ops.install()
from mmcv import _ext
print(_ext.nms(), ops.stand_in_is_used())
"""
    assert run(BARE + code, folder).split() == ['compiled', 'False']


REPORT = """
try:
    ops.install()
except SetupError as error:
    print(error)
"""


def test_compiled_operators_of_another_torch_are_reported(tmp_path: Path) -> None:
    folder = fake_mmcv(tmp_path, 'raise ImportError("undefined symbol: _ZN3c10\\nmore")')
    message = run(BARE + REPORT, folder).strip()
    assert message.count('\n') == 0
    assert f'do not load under torch {torch.__version__} (undefined symbol: _ZN3c10)' in message
    assert str(folder) in message
    assert ops.BUILD_LINE in message


def test_a_missing_mmcv_is_reported_with_the_line_that_installs_it() -> None:
    message = run(BARE + 'sys.modules["mmcv"] = None' + REPORT)
    assert ops.LITE_LINE in message


SPAWN = """
import multiprocessing

import gfl_det
import torch
from mmcv.ops import nms

if __name__ == '__main__':
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        boxes, scores = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.5, 0.9])
        print(pool.apply(nms, (boxes, scores, 0.5))[1].tolist())
"""


def test_spawned_processes_get_the_operators_too(tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text(f'import sys\nsys.path.insert(0, {str(ROOT)!r})\n{SPAWN}')
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == '[1]', done.stderr
