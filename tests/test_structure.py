"""The house: which way imports point, what a module is, and names that are used once."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

from tests.helpers.paths import ROOT

PACKAGE = ROOT / 'gfl_det'
LOOSE = {'__init__', '__main__', 'doctor', 'errors', 'registry', 'version'}
ROOMS = (
    'cli',
    'visualization',
    'inference',
    'engine',
    'swap',
    'models',
    'calibration',
    'evaluation',
    'datasets',
    'ops',
    'compat',
    'utils',
)
MODULES = [path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts]


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_imports_point_down() -> None:
    """In a process of its own: import-linter closes the log files of whatever ran before it."""
    code = (
        'from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_test_imports_another() -> None:
    found = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'tests').rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and '.test_' in f'.{node.module}'
    ]
    assert found == []


def test_the_top_is_twelve_packages_and_the_loose_modules() -> None:
    assert {path.parent.name for path in PACKAGE.glob('*/__init__.py')} == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob('*.py')} <= LOOSE


def test_a_module_is_a_concept() -> None:
    small = {
        name(path): lines
        for path in MODULES
        if path.stem not in LOOSE and (lines := len(path.read_text().splitlines())) < 40
    }
    assert small == {}
    assert [*PACKAGE.rglob('command.py'), *(ROOT / 'projects').rglob('command.py')] == []


def test_names_of_modules_are_unique_within_a_package() -> None:
    found = defaultdict(list)
    for path in MODULES:
        if path.stem not in ('__init__', '__main__') and path.parent != PACKAGE:
            found[path.relative_to(PACKAGE).parts[0], path.stem].append(name(path))
    assert {key: names for key, names in found.items() if len(names) > 1} == {}


def test_names_of_public_classes_are_unique() -> None:
    found = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
                found[node.name].append(name(path))
    assert {key: names for key, names in found.items() if len(names) > 1} == {}


def test_each_study_can_be_imported() -> None:
    """Type checks stop at the package: a name that has moved would be noticed by a reader only."""
    for path in sorted((ROOT / 'projects').rglob('*.py')):
        if path.stem in ('__init__', '__main__'):
            continue
        try:
            import_module('.'.join(path.relative_to(ROOT).with_suffix('').parts))
        except ModuleNotFoundError as error:
            if str(error.name).startswith(('gfl_det', 'projects')):  # not a package of an extra
                raise
