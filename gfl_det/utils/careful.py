"""Work that may end its process: tried, tried apart, and set aside.

A picture can crash a decoder, or a network stall at it. What runs the processes starts them again,
and would do so for ever. A note on what was in progress lets the next process find the cause.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

START = 'spawn'  # a forked process would inherit the locks of threads that it lacks
TRIES = 2  # of a single element in a process apart

Given = TypeVar('Given')
Made = TypeVar('Made')


class Careful(Generic[Given, Made]):
    """Runs work piece by piece, so that a piece which ends its process is not tried for ever.

    Before a piece begins it is noted in a journal. If the process ends, the next one finds the note
    and runs that piece in a process apart. If that ends or stalls too, each element of the piece
    runs apart alone, and one that ends its process ``TRIES`` times is set aside. A process that was
    ended from outside so costs a repetition, and the results stay the same.

    Args:
        journal: The file of notes.
        make: Makes the function that does the work; picklable.
        fail: Makes the result of an element that was set aside, given a reason.
        patience: Seconds for a piece.
        work: The function, if it is already made.
    """

    def __init__(
        self,
        journal: Path,
        make: Callable[[], Callable[[Sequence[Given]], list[Made]]],
        fail: Callable[[Given, str], Made],
        patience: float,
        work: Callable[[Sequence[Given]], list[Made]] | None = None,
    ) -> None:
        self._journal, self._make, self._fail = journal, make, fail
        self._patience, self._work = patience, work
        self._other: _Apart | None = None
        try:
            self._suspects = set(json.loads(journal.read_text()))
        except (OSError, TypeError, ValueError):
            self._suspects = set()

    def run(self, pieces: Sequence[Sequence[Given]]) -> Iterator[Made]:
        """Yield the results of all pieces, in order."""
        for place, piece in enumerate(pieces):
            if place in self._suspects:
                yield from self._apart(piece)
                continue
            self._journal.write_text(json.dumps([*self._suspects, place]))
            if self._work is None:
                self._work = self._make()
            faulthandler.dump_traceback_later(self._patience, exit=True)  # where it stalls
            try:
                results = self._work(piece)
            finally:
                faulthandler.cancel_dump_traceback_later()
            yield from results
        self._journal.unlink(missing_ok=True)
        if self._other is not None:
            self._other.close()

    def _apart(self, piece: Sequence[Given]) -> list[Made]:
        """Do a piece that may end its process."""
        for _ in range(1 if len(piece) > 1 else TRIES):
            self._other = self._other or _Apart(self._make, self._patience)
            done, reason = self._other.do(piece)
            if done is not None:
                return done
            self._other = None
        if len(piece) == 1:
            text = f'set aside after {TRIES} tries: its process {reason}'
            return [self._fail(piece[0], text)]
        return [made for each in piece for made in self._apart([each])]


class _Apart:
    """A process that does pieces until one ends it."""

    def __init__(self, make: Callable[[], Any], patience: float) -> None:
        context: Any = multiprocessing.get_context(START)
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, make, patience)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def do(self, piece: Sequence[Any]) -> tuple[list[Any] | None, str]:
        """Return the results of a piece, or None and how the process ended."""
        try:
            # Bytes: torch would pass tensors by files that end with the process.
            self._pipe.send_bytes(pickle.dumps(piece, protocol=5))
            return pickle.loads(self._pipe.recv_bytes()), ''
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            return None, 'stalled' if code == 1 else f'ended ({_ending(code)})'

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _ending(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f'exit status {code}'
    except ValueError:
        return f'signal {-code}'


def _serve(pipe: Any, make: Callable[[], Any], patience: float) -> None:
    work = make()
    with open(os.devnull, 'w') as nowhere, suppress(EOFError):
        while True:
            piece = pickle.loads(pipe.recv_bytes())
            faulthandler.dump_traceback_later(patience, exit=True, file=nowhere)  # status 1
            results = work(piece)
            faulthandler.cancel_dump_traceback_later()
            pipe.send_bytes(pickle.dumps(results, protocol=5))
