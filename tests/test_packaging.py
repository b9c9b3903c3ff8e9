"""The wheel and the editable install in empty environments, and what setup.py asks for."""

from __future__ import annotations

import email
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.helpers.forks import Script, run_scripts
from tests.helpers.paths import ROOT

PACKAGED = (
    'LICENSE',
    'MANIFEST.in',
    'README.md',
    'configs',
    'gfl_det',
    'model-index.yml',
    'pyproject.toml',
    'setup.py',
    'tests',
    'tools',
)
# Run from an unrelated folder; argv: where gfl_det has to lie, and its configs.
LOOK_UPS = """
import sys
from pathlib import Path

import gfl_det
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DATASETS, PARAM_SCHEDULERS
from mmengine.runner import Runner

assert Path(gfl_det.__file__).parents[1] == Path(sys.argv[1]), gfl_det.__file__
named = gfl_det.get_config('gfl_r50_fpn_1x_coco')
assert named.model.bbox_head.type == 'gfl_det.GFLHead'
assert Path(named.filename).is_relative_to(sys.argv[2]), named.filename
assert get_config('gfl_det::gfl/gfl_r50_fpn_1x_coco.py').to_dict() == named.to_dict()

Path('mine.py').write_text('''
_base_ = 'gfl_det::gfl/gfl_r50_fpn_ms-2x_coco.py'
model = dict(bbox_head=dict(num_classes=3))
work_dir = 'work'
''')
mine = Config.fromfile('mine.py')
assert (mine.train_cfg.max_epochs, mine.model.backbone.depth) == (24, 50)
runner = Runner.from_cfg(mine)
assert isinstance(runner.model.bbox_head, gfl_det.models.heads.GFLHead)
assert runner.model.bbox_head.gfl_cls.out_channels == 3
optimizer = runner.build_optim_wrapper(mine.optim_wrapper).optimizer
for schedule in mine.param_scheduler:
    PARAM_SCHEDULERS.build(dict(optimizer=optimizer, **schedule))
dataset = DATASETS.build(dict(lazy_init=True, **mine.train_dataloader.dataset))
assert isinstance(dataset, gfl_det.datasets.CocoDataset)
assert len(dataset.pipeline.transforms) == 5
print('found everything')
"""
HIDE_SITE_PACKAGES = """
import sys, sysconfig
hidden = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}
sys.path[:] = [path for path in sys.path if path not in hidden]
"""


def run(*command: object, cwd: Path, **variables: str) -> str:
    """Run a command in a clean environment and return what it printed; a failure shows it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, 'OMP_NUM_THREADS': '1', **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def pip(*arguments: object, cwd: Path) -> None:
    if importlib.util.find_spec('pip') is None:
        pytest.skip('this environment was made without pip')
    flags = ['--no-deps', '--no-build-isolation', '--no-index', '--disable-pip-version-check']
    run(sys.executable, '-m', 'pip', *arguments, *flags, cwd=cwd)


class Environment:
    """A virtual environment without pip."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / 'bin' / 'python'
        (self.site,) = folder.glob('lib/python*/site-packages')

    def borrow_dependencies(self) -> None:
        """See this interpreter's torch, mmdet and so on, but not its editable gfl_det."""
        outer = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
        (self.site / 'outer.pth').write_text('\n'.join(outer))


@pytest.fixture(scope='module')
def tree(tmp_path_factory) -> Path:
    """What a clone holds of the package, so that building leaves nothing in the real one."""
    folder = tmp_path_factory.mktemp('tree')
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns('__pycache__', '.mim')
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope='module')
def wheel(tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('wheel')
    pip('wheel', '.', '--wheel-dir', folder, cwd=tree)
    (path,) = folder.glob('gfl_det-*.whl')
    return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Environment:
    """An environment that has the wheel."""
    folder = tmp_path_factory.mktemp('installed')
    environment = Environment(folder / 'env')
    environment.borrow_dependencies()
    pip('--python', environment.python, 'install', wheel, cwd=folder)
    return environment


# A user of the wheel, without a checkout: data, its check, a training with a worker, a test, use.
SMALL = (
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=2',
    'train_dataloader.num_workers=1',
    'val_dataloader.num_workers=1',
    'test_dataloader.num_workers=1',
)
MAIN_PATH = (
    ('digits', '--train', '4', '--val', '2'),
    ('check', 'gfl_r18_fpn_digits'),
    ('train', 'gfl_r18_fpn_digits', '--work-dir', 'run', '--cfg-options', *SMALL),
    ('weights', 'extract', 'run/epoch_1.pth', 'detector.pth'),
    ('test', 'gfl_r18_fpn_digits', 'detector.pth', '--out', 'found.json', '--cfg-options', *SMALL),
    ('infer', 'detector.pth', 'data/digits/val', '--show-dir', 'drawn', '--device', 'cpu'),
)


# Each command in a fork of an interpreter that has imported what all of them import.
COMMANDS = """
import json, os, sys

from gfl_det.cli.main import main

import mmdet.apis
for words in json.loads(sys.argv[1]):
    sys.argv = ['gfl-det', *words]
    pid = os.fork()
    if not pid:
        try:
            main()
            status = 0
        except SystemExit as end:
            status = 1 if isinstance(end.code, str) else end.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0, words
"""


def test_wheel_and_editable_install_do_what_a_clone_does(installed, tree, tmp_path):
    """Each finds its configs in an empty environment; the wheel's command does the main path."""
    program = installed.python.parent / 'gfl-det'
    looks, path, elsewhere = (tmp_path / name for name in ('looks', 'path', 'elsewhere'))
    for folder in (looks, path, elsewhere):
        folder.mkdir()
    assert 'suggest-reg-max' in run(program, cwd=path)
    run(program, *MAIN_PATH[0], cwd=path)

    libraries, editable = Environment(tmp_path / 'libraries'), Environment(tmp_path / 'editable')
    for environment in (libraries, editable):
        environment.borrow_dependencies()
    clone = shutil.copytree(tree, tmp_path / 'clone')
    pip('--python', editable.python, 'install', '-e', clone, cwd=tmp_path)
    mim = clone / 'gfl_det' / '.mim'
    assert (mim / 'configs' / 'gfl').resolve() == clone / 'configs'
    assert (mim / 'tools').resolve() == clone / 'tools'

    site = installed.site
    scripts = [
        Script(LOOK_UPS, (site, site / 'gfl_det/.mim'), looks, site),
        Script(COMMANDS, (json.dumps(MAIN_PATH[1:]),), path, site),
        Script(LOOK_UPS, (clone, mim), elsewhere, editable.site),
    ]
    said = run_scripts(libraries.python, scripts)
    assert said.count('found everything') == 2
    assert 'Traceback' not in said
    assert (path / 'found.json').is_file()
    assert len(list((path / 'drawn').iterdir())) == 2


def test_the_wheel_holds_the_package_the_configs_and_the_tools_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        models = yaml.safe_load(archive.read('gfl_det/.mim/configs/metafile.yml'))['Models']
        index = yaml.safe_load(archive.read('gfl_det/.mim/model-index.yml'))
    metadata = f'{wheel.name.split("-py3")[0]}.dist-info'
    shipped = {f'gfl_det/.mim/configs/gfl/{path.name}' for path in ROOT.glob('configs/*.py')}
    tools = {path.name for path in ROOT.glob('tools/*.*')}
    # Benchmarks and proofs run from projects/, which stays in the checkout.
    measuring = {name for name in tools if name.startswith(('benchmark', 'prove_'))}
    shipped |= {f'gfl_det/.mim/tools/{name}' for name in tools - measuring}
    sources = {path.relative_to(ROOT).as_posix() for path in ROOT.glob('gfl_det/**/*.py')}
    sources |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob('gfl_det/*/*/page/*')}
    sources = {name for name in sources if '/.mim/' not in name}
    assert names >= shipped | sources
    assert min(len(shipped), len(sources)) > 0
    assert {f'gfl_det/.mim/{path}' for path in index['Import']} <= names
    assert {f'gfl_det/.mim/{model["Config"]}' for model in models} <= shipped
    assert f'{metadata}/licenses/LICENSE' in names
    assert {name.split('/')[0] for name in names} == {'gfl_det', metadata}
    assert not [name for name in names if name.split('/')[-1] in measuring]
    assert not [name for name in names if '__pycache__' in name or '/test_' in name]


def test_the_metadata_states_license_python_and_ranges(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('/METADATA'))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata['License'] == 'Apache-2.0'
    assert metadata['Requires-Python'] == '>=3.10'
    required = {line.replace(' ', '') for line in metadata.get_all('Requires-Dist')}
    assert {'torch>=2.1', 'mmdet<4,>=3.3', 'mmengine<1,>=0.10.3', 'setuptools<81'} <= required


@pytest.fixture(scope='module')
def build_requirements(tmp_path_factory) -> Path:
    """What pip's build isolation puts on PYTHONPATH: setuptools, and code that hides the rest."""
    folder = tmp_path_factory.mktemp('isolated')
    source = Path(importlib.util.find_spec('setuptools').origin).parents[1]
    for pattern in ('setuptools*', 'pkg_resources', '_distutils_hack'):
        for path in source.glob(pattern):
            (folder / path.name).symlink_to(path)
    (folder / 'sitecustomize.py').write_text(HIDE_SITE_PACKAGES)
    return folder


def requested_mmcv(environment: Environment, tree: Path, *paths: Path) -> list[str]:
    """What setup.py asks for when it runs with these paths on PYTHONPATH."""
    out = environment.site.parent / 'egg'
    out.mkdir()
    command = (environment.python, 'setup.py', 'egg_info', '--egg-base', out)
    run(*command, cwd=tree, PYTHONPATH=os.pathsep.join(map(str, paths)))
    lines = (out / 'gfl_det.egg-info' / 'requires.txt').read_text().splitlines()
    assert 'torch>=2.1' in lines
    return [line for line in lines if line.startswith('mmcv')]


def write_mmcv(folder: Path, *files: str) -> None:
    (folder / 'mmcv').mkdir(parents=True)
    for name in ('__init__.py', *files):
        (folder / 'mmcv' / name).touch()


def test_without_mmcv_the_lite_one_is_asked_for(tree, tmp_path, build_requirements):
    environment = Environment(tmp_path)
    assert requested_mmcv(environment, tree, build_requirements) == ['mmcv-lite<2.2,>=2.0.1']


def test_a_present_lite_one_stays_a_requirement(tree, tmp_path, build_requirements):
    environment = Environment(tmp_path)
    write_mmcv(environment.site)
    assert requested_mmcv(environment, tree, build_requirements) == ['mmcv-lite<2.2,>=2.0.1']


def test_compiled_mmcv_is_kept_though_isolation_hides_it(tree, tmp_path, build_requirements):
    environment = Environment(tmp_path)
    write_mmcv(environment.site, '_ext.cpython-311-x86_64-linux-gnu.so')
    assert requested_mmcv(environment, tree, build_requirements) == []


def test_compiled_mmcv_on_the_users_path_is_kept(tree, tmp_path, build_requirements):
    environment = Environment(tmp_path / 'env')
    write_mmcv(tmp_path / 'mine', '_ext.so')
    paths = (build_requirements, tmp_path / 'mine')
    assert requested_mmcv(environment, tree, *paths) == []
