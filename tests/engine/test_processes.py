"""Two processes on one machine, over gloo: lost ones, stopped ones, restarted ones, and metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed.constants import default_pg_timeout

from tests.helpers.project import (
    ROOT,
    differences,
    environment,
    fork_processes,
    fork_training,
    free_port,
    make_project,
    training_state,
    wait_for,
    wait_for_text,
)

LIMIT_S = 150  # for what takes seconds on an idle machine
PATIENCE_S = 6
HALVES = ('--cfg-options', 'train_dataloader.batch_size=2', 'val_dataloader.batch_size=2')
FINAL = 'epoch_6.pth'


def texts(folder: Path, name: str) -> str:
    return '\n'.join((folder / f'{name} {rank}.log').read_text() for rank in range(2))


def finish(folder: Path, name: str, *words: object) -> str:
    pids = fork_processes(folder, name, '--work-dir', name, *words, *HALVES)
    ends = [wait_for(pid, LIMIT_S) for pid in pids]
    assert ends == [0, 0], texts(folder, name)[-4000:]
    return texts(folder, name)


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    """A project, with a training in two processes that nothing happened to, in ``whole``."""
    folder = make_project(tmp_path_factory.mktemp('processes') / 'project')
    finish(folder, 'whole')
    return folder


def assert_same_end(folder: Path, work_dir: str) -> None:
    ends = [training_state(folder / each / FINAL) for each in ('whole', work_dir)]
    assert len(ends[0]['training_state']['random']) == 2  # one state a process
    assert differences(*ends) == []


def start_and_wait(folder: Path, name: str, *words: object) -> list[int]:
    pids = fork_processes(folder, name, '--work-dir', name, *HALVES, *words)
    wait_for_text(folder / f'{name} 0.log', 'Epoch(train) [2][1/3]', pids[0], LIMIT_S)
    return pids


def test_a_killed_process_ends_the_other_with_an_error(whole):
    pids = start_and_wait(whole, 'killed')
    os.killpg(pids[1], signal.SIGKILL)
    assert wait_for(pids[1], 10) == -signal.SIGKILL
    # Nobody tells the other, and torch would wait for an answer ten times as long as we do.
    assert default_pg_timeout.total_seconds() > 10 * LIMIT_S
    assert wait_for(pids[0], LIMIT_S) == 1
    assert not (whole / 'killed' / FINAL).exists()
    last = (whole / 'killed 0.log').read_text()
    assert 'error: another process of this run has ended or does not answer' in last
    assert 'go on with --resume' in last
    assert 'resuming from killed/epoch_' in finish(whole, 'killed', '--resume')
    assert_same_end(whole, 'killed')


def test_a_process_that_hangs_ends_the_other_within_the_timeout(whole):
    pids = start_and_wait(whole, 'hung', f'env_cfg.dist_cfg.timeout={PATIENCE_S}')
    os.kill(pids[1], signal.SIGSTOP)
    try:
        assert wait_for(pids[0], PATIENCE_S + LIMIT_S) == 1
        text = (whole / 'hung 0.log').read_text()
        assert 'error: another process of this run has ended or does not answer' in text
    finally:
        os.killpg(pids[1], signal.SIGKILL)
        wait_for(pids[1], 10)


@pytest.mark.parametrize('told', [0, 1])
def test_a_signal_to_one_ends_both_after_the_same_step(whole, told):
    name = f'told_{told}'
    pids = start_and_wait(whole, name)
    os.kill(pids[told], signal.SIGTERM)
    assert [wait_for(pid, LIMIT_S) for pid in pids] == [0, 0], texts(whole, name)[-4000:]
    assert f'stopped by a signal: saved {whole}/{name}/stopped_iter_' in texts(whole, name)
    finish(whole, name, '--resume')
    assert_same_end(whole, name)


def test_metrics_of_two_processes_are_those_of_one(whole):
    """Nine images: the second process gets one of them twice, which must not count twice.

    One at a time: how far an image is padded depends on its neighbour in the batch.
    """
    labels = json.loads((whole / 'data' / 'labels.json').read_text())
    labels['images'] = labels['images'][:9]
    labels['annotations'] = [each for each in labels['annotations'] if each['image_id'] <= 9]
    (whole / 'data' / 'nine.json').write_text(json.dumps(labels))
    words = [f'whole/{FINAL}', '--work-dir', 'tested', '--cfg-options']
    words += ['test_dataloader.dataset.ann_file=nine.json', 'test_dataloader.batch_size=1']
    # Loose overlaps: after 18 steps there are no others.
    words += ['test_evaluator.ann_file=data/nine.json', 'test_evaluator.iou_thrs=[0.05,0.1,0.2]']
    tool = ROOT / 'tools' / 'test.py'
    one = fork_training(whole, whole / 'one.log', *words, tool=tool)
    assert wait_for(one, LIMIT_S) == 0, (whole / 'one.log').read_text()[-2000:]
    two = fork_processes(whole, 'two', *words, tool=tool)
    assert [wait_for(pid, LIMIT_S) for pid in two] == [0, 0], texts(whole, 'two')[-2000:]
    tables = [
        [line for line in (whole / name).read_text().splitlines() if ' @[ IoU=' in line]
        for name in ('one.log', 'two 0.log')
    ]
    assert tables[0] == tables[1]
    assert any(float(line.rpartition('=')[2]) > 0.01 for line in tables[0])


@pytest.mark.slow
def test_torchrun_starts_again_and_resumes(whole):
    """The real commands: a process is killed, torchrun starts both anew, and they go on."""
    command = [str(ROOT / 'tools' / 'dist_train.sh'), 'tiny.py', '2', '--work-dir', 'elastic']
    log = whole / 'elastic.log'
    with open(log, 'w') as file:
        run = subprocess.Popen(
            [*command, '--resume', *HALVES],
            cwd=whole,
            env=environment(whole, MAX_RESTARTS='2', PORT=free_port()),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        end = time.monotonic() + 2 * LIMIT_S
        while 'Epoch(train) [3][1/3]' not in log.read_text() and time.monotonic() < end:
            assert run.poll() is None, log.read_text()[-2000:]
            time.sleep(0.05)
        children = subprocess.run(
            ['pgrep', '-P', str(run.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
        assert run.wait(4 * LIMIT_S) == 0, log.read_text()[-3000:]
    text = log.read_text()
    assert 'to resume from: a new training' in text
    assert 'resuming from elastic/epoch_2.pth: epoch 2, iteration 6' in text
    assert_same_end(whole, 'elastic')
