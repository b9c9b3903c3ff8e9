"""The tests that run each line, and the seconds that each takes: measured, kept in work_dirs/.

Each test file is measured in a fork of its own: a cache that another file has filled hides nothing.
It is measured again when gfl_det, a helper of the tests or the file itself has changed.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from projects.mutation.forks import ROOT, run_pytest

KEPT = ROOT / 'work_dirs/mutation/tests'


class LineTests:
    """The tests in some files, by the line that they run.

    Raises:
        SystemExit: A test fails on the code as it is.
    """

    def __init__(self, files: list[str]) -> None:
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, set[str]]] = {}
        for file in files:
            record = _measured(file)
            seconds, contexts = record['seconds'], record['contexts']
            self.seconds.update(seconds)
            for path, by_line in record['lines'].items():
                module = self.lines.setdefault(path, {})
                for line, numbers in by_line.items():
                    found = {contexts[number] for number in numbers}
                    tests = seconds if file in found else found - {''}
                    module.setdefault(int(line), set()).update(tests)

    def of(self, path: str, code: str, line: int) -> list[str]:
        """Return the tests that run a line: of the module's name first, then the fastest.

        What runs on import, as a default or a constant, has the tests of what it stands in.
        """
        by_line = self.lines.get(path, {})
        for lines in places(code, line):
            if tests := set().union(*(by_line.get(each, ()) for each in lines)):
                break
        words = Path(path).stem.split('_')
        total: dict[str, float] = {}
        for test in tests:
            total[file_of(test)] = total.get(file_of(test), 0) + self.seconds[test]

        def place(test: str) -> tuple[Any, ...]:
            file = file_of(test)
            named = sum(word in Path(file).stem for word in words)
            return -named, total[file], file, self.seconds[test]

        return sorted(tests, key=place)


def file_of(test: str) -> str:
    """The file of a test's full name."""
    return test.partition('::')[0]


def places(code: str, line: int) -> list[set[int]]:
    """Return the lines whose tests are those of a line; the first of these sets that has any."""
    bodies, around = set(), []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, (ast.stmt, ast.ExceptHandler)):
            continue
        body = getattr(node, 'body', None)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            bodies.update(range(body[0].lineno, node.end_lineno + 1))
        first = min(each.lineno for each in [node, *getattr(node, 'decorator_list', [])])
        if first <= line <= node.end_lineno:
            # Of an ``if`` or a ``for``, the head alone.
            last = max(first, body[0].lineno - 1) if body else node.end_lineno
            around.append((range(first, node.end_lineno + 1), range(first, last + 1)))
    around.sort(key=lambda each: len(each[0]))
    if line in bodies:
        return [set(around[0][1])]
    return [bodies & set(whole) for whole, _ in around] + [bodies]


class _Recorder:
    """Tells coverage which test runs; a fixture that tests share counts for the whole file."""

    def __init__(self, file: str, coverage: Any) -> None:
        self.file, self.coverage = file, coverage
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        shared = fixturedef.scope != 'function'
        self.coverage.switch_context(self.file if shared else request.node.nodeid)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: Any) -> None:
        self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration


def _measured(file: str) -> dict[str, Any]:
    digest = hashlib.sha256()
    shared = [*(ROOT / 'gfl_det').rglob('*.py'), *(ROOT / 'tests/helpers').rglob('*.py')]
    for path in [*sorted(shared), ROOT / 'tests/conftest.py', ROOT / file]:
        digest.update(path.read_bytes())
    kept = KEPT / f'{Path(file).stem}.json'
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(kept.read_text())
        if record['digest'] == digest.hexdigest():
            return record
    print(f'measuring {file}', flush=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = _measure(file, kept, digest.hexdigest())
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f'error: {file} fails without any change; see make test.')
    return json.loads(kept.read_text())


def _measure(file: str, kept: Path, digest: str) -> int:
    from coverage import Coverage

    coverage = Coverage(data_file=None, config_file=False, source=[str(ROOT / 'gfl_det')])
    recorder = _Recorder(file, coverage)
    coverage.start()
    status = run_pytest([file], recorder)
    coverage.stop()
    data = coverage.get_data()
    contexts = sorted({'', *data.measured_contexts()})
    lines = {
        str(Path(name).relative_to(ROOT)): {
            line: [contexts.index(each) for each in found]
            for line, found in data.contexts_by_lineno(name).items()
        }
        for name in data.measured_files()
    }
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:  # none is chosen
        status = 0
    if not status:
        record = dict(digest=digest, seconds=recorder.seconds, contexts=contexts, lines=lines)
        kept.write_text(json.dumps(record))
    return status
