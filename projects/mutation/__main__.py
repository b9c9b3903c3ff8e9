"""A tool that changes expressions one at a time and names the changes that no test notices.

    python -m projects.mutation [--sample 300] [--seed 0] [--only gfl_det/ops] [--jobs 2]

cosmic-ray finds and makes the changes. A change costs no fresh import of torch and mmengine: each
is tried in a fork of a process that has imported both, and nothing of gfl_det. Files stay as they
are: the fork imports the one module from the changed code. The tests that run the changed line
are tried, fastest first.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from projects.mutation.forks import BROKEN, ROOT, import_what_is_not_ours, start_tests
from projects.mutation.line_tests import LineTests

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
EQUIVALENT = Path(__file__).with_name('equivalent.txt')
RESULTS = ROOT / 'work_dirs/mutation/results.jsonl'
PASSED = (0, 5)  # 5: there is no such test, as where a change alters a parameter's name


class Mutant(NamedTuple):
    """One change: of an occurrence that an operator finds in a module."""

    path: str
    operator: str
    occurrence: int
    line: int


class Change(NamedTuple):
    """A mutant with its module's code before and after, and the tests that run its line."""

    mutant: Mutant
    before: str
    after: str
    tests: list[str]
    seconds: float

    @property
    def key(self) -> str:
        """Names the change as long as its module stays as it is."""
        return hashlib.sha256(f'{self.mutant.path}\n{self.after}'.encode()).hexdigest()[:16]

    @property
    def lines(self) -> tuple[str, ...]:
        """What differs, as a diff shows it, without indentation."""
        before, after = self.before.splitlines(), self.after.splitlines()
        diff = list(difflib.unified_diff(before, after, lineterm='', n=0))[2:]
        return tuple(f'{line[0]} {line[1:].strip()}' for line in diff if line[0] != '@')


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


def make_change(mutant: Mutant) -> Change:
    """Change the code of a mutant's module and find its tests."""
    from cosmic_ray.mutating import mutate_code

    before = (ROOT / mutant.path).read_text()
    after = mutate_code(before, operators()[mutant.operator], mutant.occurrence)
    folder = next(each for each in TESTS if mutant.path.startswith(f'{each}/'))
    found = tests_of(folder)
    tests = found.of(mutant.path, before, mutant.line)
    return Change(mutant, before, after, tests, sum(found.seconds[each] for each in tests))


@functools.cache
def tests_of(folder: str) -> LineTests:
    """The tests of a folder of the package, by line."""
    files = []
    for each in TESTS[folder]:
        path = ROOT / each
        files += sorted(path.rglob('test_*.py')) if path.is_dir() else [path]
    return LineTests([str(file.relative_to(ROOT)) for file in files])


def try_all(changes: list[Change], jobs: int) -> Iterator[tuple[Change, str]]:
    """Yield each change with noticed, timeout (a loop became endless, say) or survived."""
    running: dict[int, tuple[Change, float]] = {}
    waiting = changes[::-1]
    while waiting or running:
        while waiting and len(running) < jobs:
            change = waiting.pop()
            if change.tests:
                end = time.monotonic() + 60 + 10 * change.seconds
                pid = start_tests(ROOT / change.mutant.path, change.after, change.tests)
                running[pid] = change, end
            else:
                yield change, 'survived'
        for pid, (change, end) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            late = not ended and time.monotonic() > end
            if late:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if late or ended:
                del running[pid]
                code = os.waitstatus_to_exitcode(status)
                assert code != BROKEN, change.lines
                yield change, 'timeout' if late else 'survived' if code in PASSED else 'noticed'
        time.sleep(0.02)


def earlier_results() -> dict[str, str]:
    """What earlier runs found, by key; survivors are tried again, as a test may have been added."""
    if not RESULTS.exists():
        return {}
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {each['key']: each['result'] for each in found if each['result'] != 'survived'}


def known_equivalents() -> set[tuple[str, ...]]:
    """The changes in equivalent.txt: path and changed lines."""
    blocks = [block.strip().splitlines() for block in EQUIVALENT.read_text().split('\n\n')]
    return {
        (block[0], *(each for each in block[1:] if each[0] in '-+')) for block in blocks if block
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--sample', type=int, default=300, help='how many changes (300)')
    parser.add_argument('--seed', type=int, default=0, help='of the sample (0)')
    parser.add_argument('--only', choices=TESTS, help='one folder instead of all')
    parser.add_argument('--jobs', type=int, default=2, help='changes tried at a time (2)')
    args = parser.parse_args()
    every = [
        each for folder in ([args.only] if args.only else TESTS) for each in list_mutants(folder)
    ]
    sample = random.Random(args.seed).sample(every, min(args.sample, len(every)))
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    import_what_is_not_ours()
    changes = [make_change(each) for each in sample]
    report(changes, args.jobs)
    print(f'{len(every)} changes there are.')


def report(changes: list[Change], jobs: int) -> None:
    """Try the changes that are not known, print the survivors and the counts of each folder."""
    counts: dict[str, Counter[str]] = {folder: Counter() for folder in TESTS}
    known, equivalent = earlier_results(), known_equivalents()

    def count(change: Change, result: str) -> None:
        counts['/'.join(change.mutant.path.split('/')[:2])][result] += 1

    unknown = []
    for change in changes:
        if change.key in known:
            count(change, known[change.key])
        elif (change.mutant.path, *change.lines) in equivalent:
            count(change, 'equivalent')
        else:
            unknown.append(change)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for done, (change, result) in enumerate(try_all(unknown, jobs), start=1):
        count(change, result)
        with RESULTS.open('a') as file:
            row = dict(key=change.key, result=result, lines=change.lines, **change.mutant._asdict())
            file.write(f'{json.dumps(row)}\n')
        print(f'{done}/{len(unknown)}', end='\r', file=sys.stderr, flush=True)
        if result == 'survived':
            mutant = change.mutant
            print(f'{mutant.path}:{mutant.line} {mutant.operator}, {len(change.tests)} tests')
            print('\n'.join(f'    {line}' for line in change.lines), flush=True)
    total = sum(counts.values(), Counter())
    for name, each in {**counts, 'all': total}.items():
        if changed := sum(each.values()):
            found = ', '.join(f'{number} {result}' for result, number in sorted(each.items()))
            share = (each['noticed'] + each['timeout']) / changed
            print(f'{name}: {found}; {share:.0%} of {changed} noticed or timed out')


if __name__ == '__main__':
    main()
