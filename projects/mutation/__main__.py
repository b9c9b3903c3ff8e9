"""A tool that changes expressions one at a time and names the changes that no test notices.

    python -m projects.mutation [--sample 300] [--seed 0] [--only gfl_det/ops] [--jobs 2]

cosmic-ray finds and makes the changes. A change costs no fresh import of torch and mmengine: each
is tried in a fork of a process that has imported both, and nothing of gfl_det. Files stay as they
are: the fork imports the one module from the changed code.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# The package's folders, with the tests that are to notice changes in them.
TESTS = {
    'gfl_det/ops': (
        'tests/ops',
        'tests/inference/test_inference.py',
        'tests/models/test_head_parity.py',
    ),
    'gfl_det/models': ('tests/models',),
    'gfl_det/evaluation': ('tests/evaluation', 'tests/calibration'),
    'gfl_det/calibration': ('tests/calibration', 'tests/evaluation', 'tests/cli/test_calibrate.py'),
}
# Of these operators half of the changes are equivalent: annotations, and names of our own.
LEFT_OUT = ('VariableReplacer', 'VariableInserter', 'ExceptionReplacer', 'RemoveDecorator')
SLOW_TESTS = 'not compile and not two_processes'
SECONDS = 240  # a change may make a loop endless


class Mutant(NamedTuple):
    """One change: of an occurrence that an operator finds in a module."""

    path: str
    operator: str
    occurrence: int
    line: int


class Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from other code than its file's; the files stay as they are."""

    def __init__(self, path: Path, code: str) -> None:
        self.path, self.code = str(path), code
        parts = path.relative_to(ROOT).with_suffix('').parts
        self.name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.code.encode()

    def path_stats(self, path: str) -> dict[str, Any]:
        raise OSError  # no bytecode of the changed module is kept


def operators() -> dict[str, Any]:
    """The changes that cosmic-ray knows, one object each."""
    from cosmic_ray.operators.provider import OperatorProvider

    provider = OperatorProvider()
    chosen = [name for name in provider if name not in LEFT_OUT]
    return {name: provider[name]() for name in chosen if not provider[name].arguments()}


def list_mutants(folder: str) -> list[Mutant]:
    """All changes of the modules of a folder that do more than alter an annotation."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path

    found = []
    for path in sorted((ROOT / folder).rglob('*.py')):
        tree = get_ast_from_path(path)
        for name, operator in operators().items():
            places = [
                (node, start[0])
                for node in ast_nodes(tree)
                for start, _ in operator.mutation_positions(node)
            ]
            found += [
                Mutant(str(path.relative_to(ROOT)), name, number, line)
                for number, (node, line) in enumerate(places)
                if not _is_annotation(node)
            ]
    return found


def _is_annotation(node: Any) -> bool:
    while (parent := node.parent) is not None:
        place = dict(annassign=1, tfpdef=2).get(parent.type)
        if place is not None and node is parent.children[place]:
            return True
        if parent.type == 'funcdef' and node is parent.annotation:
            return True
        node = parent
    return False


def mutate(mutant: Mutant) -> tuple[str, str]:
    """Return the code of the mutant's module and the changed code."""
    from cosmic_ray.mutating import mutate_code

    before = (ROOT / mutant.path).read_text()
    after = mutate_code(before, operators()[mutant.operator], mutant.occurrence)
    return before, after


def start_tests(mutant: Mutant, code: str) -> int:
    """Run the tests of the mutant's folder on the changed code in a fork; return its process."""
    folder = next(each for each in TESTS if mutant.path.startswith(f'{each}/'))
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        status = _run_tests(mutant, code, TESTS[folder])
    finally:
        os._exit(status)


def try_all(changes: list[tuple[Mutant, str]], jobs: int) -> Iterator[tuple[int, bool]]:
    """Yield each change's place in the list and whether a test failed or did not end in time."""
    running: dict[int, tuple[int, float]] = {}
    waiting = list(enumerate(changes))[::-1]
    while waiting or running:
        while waiting and len(running) < jobs:
            number, change = waiting.pop()
            running[start_tests(*change)] = number, time.monotonic() + SECONDS
        for pid, (number, end) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and time.monotonic() > end:
                os.killpg(pid, signal.SIGKILL)
                ended, status = os.waitpid(pid, 0)
            if ended:
                del running[pid]
                yield number, status != 0
        time.sleep(0.02)


def _run_tests(mutant: Mutant, code: str, tests: tuple[str, ...]) -> int:
    import pytest

    os.chdir(ROOT)
    sys.meta_path.insert(0, Changed(ROOT / mutant.path, code))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    # The tests of the module's own name first: they notice most changes within a second.
    words = Path(mutant.path).stem.split('_')
    files = sorted(
        {file for each in tests for file in _test_files(ROOT / each)},
        key=lambda file: -sum(word in file.stem for word in words),
    )
    with tempfile.TemporaryDirectory() as folder:
        options = ['-x', '-q', '-p', 'no:cacheprovider', '--basetemp', f'{folder}/tests']
        return int(pytest.main([*options, '-k', SLOW_TESTS, *map(str, files)]))


def _test_files(path: Path) -> list[Path]:
    return sorted(path.rglob('test_*.py')) if path.is_dir() else [path]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--sample', type=int, default=300, help='how many changes (300)')
    parser.add_argument('--seed', type=int, default=0, help='of the sample (0)')
    parser.add_argument('--only', choices=TESTS, help='one folder instead of all')
    parser.add_argument('--jobs', type=int, default=2, help='changes tried at a time (2)')
    args = parser.parse_args()
    folders = [args.only] if args.only else TESTS
    every = [each for folder in folders for each in list_mutants(folder)]
    sample = random.Random(args.seed).sample(every, min(args.sample, len(every)))
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    import_what_is_not_ours()
    for folder in folders:
        path = next((ROOT / folder).rglob('[a-z]*.py'))
        same = Mutant(str(path.relative_to(ROOT)), 'none', 0, 0), path.read_text()
        if next(try_all([same], 1))[1]:
            sys.exit(f'error: the tests of {folder} fail without any change; see make test.')
    codes = [mutate(each) for each in sample]
    survived, started = 0, time.monotonic()
    changes = [(mutant, after) for mutant, (_, after) in zip(sample, codes)]
    for done, (number, killed) in enumerate(try_all(changes, args.jobs), start=1):
        print(f'{done}/{len(sample)}', end='\r', file=sys.stderr, flush=True)
        if killed:
            continue
        survived += 1
        mutant, (before, after) = sample[number], codes[number]
        print(f'{mutant.path}:{mutant.line} {mutant.operator}')
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm='', n=0)
        print('\n'.join(f'    {line}' for line in list(lines)[3:]), flush=True)
    share = 1 - survived / len(sample)
    print(
        f'{share:.0%} of {len(sample)} changes noticed ({len(every)} there are), '
        f'in {time.monotonic() - started:.0f} s.'
    )


def import_what_is_not_ours() -> None:
    """Import what takes seconds, once for all forks; gfl_det itself must stay out."""
    import cv2  # noqa: F401
    import hypothesis  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import mmcv  # noqa: F401
    import mmengine.runner  # noqa: F401
    import pycocotools.coco  # noqa: F401
    import pytest  # noqa: F401
    import scipy.optimize  # noqa: F401
    import sklearn.isotonic  # noqa: F401
    import torch
    import torch._dynamo

    torch.set_num_threads(1)
    ours = [name for name in sys.modules if name.partition('.')[0] in ('gfl_det', 'tests')]
    assert not ours, ours


if __name__ == '__main__':
    main()
