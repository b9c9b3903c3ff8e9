"""Pieces of work that end their process are found, tried apart and set aside; others go on."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from gfl_det.utils import careful as module
from gfl_det.utils.careful import Careful
from tests.helpers.fatal_work import DEADLY, STALLING, make_work, work


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    monkeypatch.setattr(module, 'START', 'fork')  # the work is light, to import torch is not


def failed(number: int, reason: str) -> str:
    return f'{number} {reason}'


def careful(journal: Path, patience: float = 20.0) -> Careful:
    return Careful(journal, make_work, failed, patience)


def run_in_process(journal: str, pieces: list[list[int]], patience: float) -> None:
    list(careful(Path(journal), patience).run(pieces))


def test_work_that_ends_nothing_is_done_here_and_leaves_no_note(tmp_path):
    journal = tmp_path / 'journal'
    seen = []
    for made in careful(journal).run([[1, 2], [3]]):
        seen.append((made, json.loads(journal.read_text())))
    assert seen == [(1, [0]), (4, [0]), (9, [1])]
    assert not journal.exists()


@pytest.mark.parametrize(
    ('bad', 'patience', 'reason'),
    [(DEADLY, 20.0, 'ended (SIGKILL)'), (STALLING, 0.3, 'stalled')],
)
def test_what_ends_its_process_is_set_aside_at_the_next_run(tmp_path, bad, patience, reason):
    journal, pieces = tmp_path / 'journal', [[1], [2, bad, 3], [4]]
    context = multiprocessing.get_context('fork')
    process = context.Process(target=run_in_process, args=(str(journal), pieces, patience))
    process.start()
    process.join()
    assert process.exitcode != 0
    assert json.loads(journal.read_text()) == [1]
    made = list(careful(journal, patience).run(pieces))
    text = f'{bad} set aside after 2 tries: its process {reason}'
    assert made == [1, 4, text, 9, 16]
    assert not journal.exists()


def test_a_process_that_was_ended_from_outside_costs_a_repetition(tmp_path):
    journal = tmp_path / 'journal'
    journal.write_text('[0, 1]')
    assert list(careful(journal).run([[1, 2], [3], [4]])) == [1, 4, 9, 16]


@pytest.mark.parametrize('note', ['', '[1', 'null', '[]'])
def test_a_torn_note_is_none(tmp_path, note):
    journal = tmp_path / 'journal'
    journal.write_text(note)
    assert list(careful(journal).run([[2]])) == work([2])
