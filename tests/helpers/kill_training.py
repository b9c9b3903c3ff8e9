"""Kill a training at random moments, resume it, and compare its end with one that was never killed.

    python tests/helpers/kill_training.py [--kills 50] [--aimed 20] [--seed 0] [--folder DIR]

Kills at any moment seldom hit the few milliseconds in which a checkpoint is written, so further
ones are aimed at them. After each kill every checkpoint in the work dir must be whole and readable,
the newest must not be older than before, and the next run must say that it goes on from exactly
that one. A training that comes to its end must have the bits of the reference: weights, averages,
moments, schedules, scaler, random generators. Then the next begins, until all kills are done.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.helpers.project import differences, fork_training, make_project, training_state, wait_for

LIMIT_S = 240  # for one training on a busy machine
RESUMED = re.compile(r'resuming from (\S+): epoch (\d+), iteration (\d+)')
FINAL = 'epoch_6.pth'


class Broken(Exception):
    """What must never happen."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--kills', type=int, default=50, help='how many (50)')
    parser.add_argument('--aimed', type=int, default=20, help='more of them, within writes (20)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments (0)')
    parser.add_argument('--folder', type=Path, help='where to work; a temporary one by default')
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        counts = kill_training(make_project(folder), args.kills, args.aimed, args.seed)
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    print(', '.join(f'{number} {what}' for what, number in counts.items()))


def kill_training(folder: Path, kills: int, aimed: int, seed: int) -> Counter:
    """Do it; returns what happened how often.

    Args:
        folder: of a project.
        kills: at moments drawn evenly from the time that a whole training takes.
        aimed: kills while a checkpoint is being written.
        seed: of both.

    Raises:
        Broken: Something was lost.
    """
    import gfl_det  # noqa: F401  (the forks inherit it, and need not take seconds to import it)

    log = folder / 'log'
    started = time.monotonic()
    pid = fork_training(folder, log, '--work-dir', 'whole')
    if wait_for(pid, LIMIT_S) != 0:
        raise Broken(f'the reference failed:\n{log.read_text()[-2000:]}')
    duration = time.monotonic() - started
    reference = training_state(folder / 'whole' / FINAL)
    counts: Counter = Counter(dict.fromkeys(('kills', 'finished'), 0))
    rng = random.Random(seed)
    moments = [rng.uniform(0, duration) for _ in range(kills)] + [None] * aimed
    rng.shuffle(moments)
    while moments or not counts['finished']:
        work_dir = folder / f'run_{counts["finished"]}'
        one_training(folder, work_dir, moments, rng, counts)
        found = differences(reference, training_state(work_dir / FINAL))
        if found:
            raise Broken(f'{work_dir} ends otherwise than the reference: {found[:5]}')
        counts['finished'] += 1
        shutil.rmtree(work_dir)
    return counts


def one_training(
    folder: Path, work_dir: Path, moments: list, rng: random.Random, counts: Counter
) -> None:
    """Start and kill a training until it comes to its end."""
    log = folder / 'log'
    newest = -1
    while True:
        pid = fork_training(folder, log, '--work-dir', work_dir.name, '--resume')
        moment = moments[-1] if moments else LIMIT_S
        status = wait_for_write(pid, work_dir, rng) if moment is None else wait_for(pid, moment)
        if status is None:
            os.killpg(pid, signal.SIGKILL)
            wait_for(pid, 10)
            counts['kills'] += 1
            counts['of them aimed'] += moment is None
            moments.pop()
        check_resumed(log.read_text(errors='replace'), newest, status is None, counts)
        if status == 0:
            if moments and moments[-1] is not None:
                moments[-1] *= 0.7  # it was quicker than the reference: sooner next time
            return
        if status is not None:
            raise Broken(f'a training ended with {status}:\n{log.read_text()[-2000:]}')
        newest = check_folder(work_dir, newest, counts)


def wait_for_write(pid: int, work_dir: Path, rng: random.Random) -> int | None:
    """Wait for a write to begin, of the next few any; status as of :func:`wait_for`."""
    writes, before = rng.randrange(1, 6), ''
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        parts = [each.name for each in work_dir.glob('*.part')] if work_dir.exists() else []
        if parts and parts[0] != before:
            before = parts[0]
            writes -= 1
            if not writes:
                time.sleep(rng.uniform(0, 0.003))
                return None
        status = wait_for(pid, 0)
        if status is not None:
            return status
        time.sleep(0.0002)
    return None


def check_resumed(text: str, newest: int, killed: bool, counts: Counter) -> None:
    """The training must have gone on from the newest checkpoint, if it came that far."""
    said = RESUMED.search(text)
    if 'passed over' in text:
        raise Broken(f'a damaged checkpoint was there:\n{text[:500]}')
    if said and int(said[3]) != newest:
        raise Broken(f'the newest checkpoint is of iteration {newest}, but it was {said[0]}')
    if not said and newest >= 0 and 'a new training' in text:
        raise Broken(f'a training began anew though there was a checkpoint of {newest}')
    counts['resumed from a checkpoint'] += said is not None


def check_folder(work_dir: Path, newest: int, counts: Counter) -> int:
    """Look at what a killed training has left; returns the newest iteration that is there."""
    from gfl_det.compat.checkpoint import load_file
    from gfl_det.engine.training import is_intact

    reached = -1
    for path in sorted(work_dir.glob('*.pth')):
        if not is_intact(path):
            raise Broken(f'{path} is torn')
        reached = max(reached, load_file(str(path), 'cpu')['meta']['iter'])
    note = work_dir / 'last_checkpoint'
    if note.exists() and not Path(note.read_text()).is_file():
        raise Broken(f'{note} names {note.read_text()!r}, which is not there')
    if reached < newest:
        raise Broken(f'iteration {newest} was saved, and now the newest is {reached}')
    counts['kills within a write'] += any(work_dir.glob('*.part'))
    counts['kills before the first checkpoint'] += reached < 0
    return reached


if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
