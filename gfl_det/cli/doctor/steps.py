"""Steps run in a child process, recorded before they start and when they end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from gfl_det.errors import GFLDetError

TIME_LIMIT = 300  # seconds; from a cold disk, importing torch alone may take a minute
ROOT = Path(__file__).resolve().parents[3]


class StepOutcome(NamedTuple):
    """Outcome of a step."""

    name: str
    ok: bool
    seconds: float
    facts: dict[str, Any]  # findings
    error: str = ''  # the problem, and the remedy if known


class Steps:
    """Recorder of steps to a file, in the child process."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> Steps:
        self.file = open(self.path, 'w', encoding='utf-8')
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def take(self, name: str, step: Callable[[], dict[str, Any]]) -> bool:
        """Run a step; return whether it succeeded."""
        self._write(name=name, begun=True)
        begin = time.perf_counter()
        error, facts = '', {}
        try:
            facts = step()
        except GFLDetError as refusal:
            error = str(refusal)
        except (Exception, SystemExit) as failure:
            error = f'{type(failure).__name__}: {failure}'
        seconds = time.perf_counter() - begin
        self._write(name=name, ok=not error, seconds=seconds, facts=facts, error=error)
        return not error

    def _write(self, **line: Any) -> None:
        self.file.write(json.dumps(line) + '\n')
        self.file.flush()  # a crash must not lose the line


def run_steps(arguments: Sequence[str], time_limit: float = TIME_LIMIT) -> list[StepOutcome]:
    """Run a child process with steps, and read their outcomes.

    Args:
        arguments: Arguments for Python; the output file is appended.
        time_limit: Time limit, seconds.

    Returns:
        Outcomes in order. If the child crashed or timed out, the last step is the cause.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'steps'
        command = [sys.executable, *arguments, str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=time_limit, check=False
            )
            end, said = _manner(done.returncode), done.stderr.strip().rpartition('\n')[2]
        except subprocess.TimeoutExpired:
            end, said = f'did not end within {time_limit:.0f} seconds', ''
        lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    outcomes = []
    begun = ''
    for line in map(json.loads, lines):
        if line.get('begun'):
            begun = line['name']
            continue
        outcomes.append(StepOutcome(**line))
        begun = ''
    if begun or not lines:
        what = ' '.join(
            part for part in (end or 'ended early', f'({said})' if said else '') if part
        )
        outcomes.append(StepOutcome(begun or 'python', False, 0, {}, f'the process {what}'))
    return outcomes


def _manner(status: int) -> str:
    if status >= 0:
        return f'ended with status {status}' if status else ''
    try:
        return f'was ended by {signal.Signals(-status).name}'
    except ValueError:
        return f'was ended by signal {-status}'
