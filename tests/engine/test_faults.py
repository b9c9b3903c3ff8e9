"""Trainings that are killed, stopped, starved of disk, and resumed, by the command line itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from gfl_det.cli import weights
from gfl_det.compat.checkpoint import load_file
from tests.helpers.kill_training import kill_training
from tests.helpers.project import (
    ROOT,
    differences,
    fork_training,
    training_state,
    wait_for,
    wait_for_text,
)

LIMIT_S = 150  # for what takes seconds on an idle machine
FINAL = 'epoch_6.pth'


def run_forked(folder: Path, *words: str, **settings: object) -> str:
    log = folder / 'log'
    pid = fork_training(folder, log, *words, **settings)
    status = wait_for(pid, LIMIT_S)
    assert status == 0, f'{status}: {log.read_text()[-2000:]}'
    return log.read_text()


def failed(folder: Path, *words: str) -> str:
    log = folder / 'log'
    assert wait_for(fork_training(folder, log, *words), LIMIT_S) == 1, log.read_text()[-2000:]
    text = log.read_text()
    assert 'Traceback' not in text
    return text


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    """A project with a training that nothing happened to, in ``whole``."""
    from tests.helpers.project import make_project

    folder = make_project(tmp_path_factory.mktemp('whole') / 'project')
    text = run_forked(folder, '--work-dir', 'whole')
    assert 'learning rate 0.002 x 4/4 = 0.002 for batches of 4 images, set for 4' in text
    return folder


def assert_same_end(folder: Path, work_dir: str, final: str = FINAL) -> None:
    ends = (training_state(folder / each / final) for each in ('whole', work_dir))
    assert differences(*ends) == []


class TestSigterm:
    # The first text stands in the log within an epoch, the second within a validation.
    @pytest.mark.parametrize('moment', ['Epoch(train) [3][1/3]', 'Epoch(val) [4][1/3]'])
    def test_saves_ends_with_0_and_resumes_to_the_same_bits(self, whole, moment):
        work_dir = f'told_{moment[6:9]}'
        log = whole / f'{work_dir}.log'
        pid = fork_training(whole, log, '--work-dir', work_dir)
        wait_for_text(log, moment, pid)
        os.killpg(pid, signal.SIGTERM)  # to the workers of its data loader too
        assert wait_for(pid, LIMIT_S) == 0, log.read_text()[-2000:]
        text = log.read_text()
        last = (whole / work_dir / 'last_checkpoint').read_text()
        assert f'stopped by a signal: saved {last}, go on with --resume' in text
        assert '[6][3/3]' not in text  # it did not simply come to its end
        resumed = run_forked(whole, '--work-dir', work_dir, '--resume')
        assert f'resuming from {work_dir}/stopped_iter_' in resumed
        assert_same_end(whole, work_dir)
        assert list((whole / work_dir).glob('stopped_*')) == []  # outdated by the next epoch's

    def test_the_best_checkpoint_can_be_gone_on_from(self, whole):
        """It holds the whole state, so that the training from there ends with the same bits."""
        (best,) = (whole / 'whole').glob('best_*.pth')
        state = training_state(best)
        assert {'optimizer', 'param_schedulers', 'ema_state_dict'} <= state.keys()
        text = run_forked(whole, '--work-dir', 'from_best', '--resume', str(best))
        assert f'resuming from {best}: epoch {state["epoch"]}' in text
        if state['epoch'] < 6:
            assert_same_end(whole, 'from_best')

    def test_averaged_and_trained_weights_can_be_used_alone(self, whole):
        (best,) = (whole / 'whole').glob('best_*.pth')
        found = {}
        for kind in ('averaged', 'trained'):
            out = whole / f'{kind}.pth'
            weights.run(weights.parse_arguments(['extract', str(best), str(out), '--kind', kind]))
            found[kind] = load_file(str(out))['state_dict']
            assert out.stat().st_size < best.stat().st_size / 2
        state = training_state(best)
        assert differences(found['averaged'], dict(state['state_dict'])) == []
        assert found['trained'].keys() == found['averaged'].keys()
        assert differences(found['trained'], found['averaged']) != []
        text = run_forked(
            *(whole, 'averaged.pth', '--work-dir', 'tested'), tool=ROOT / 'tools' / 'test.py'
        )
        score = load_file(str(best))['message_hub']['runtime_info']['best_score']
        assert f'coco/bbox_mAP: {score:.4f}' in text  # the score it was the best by


class TestDamage:
    def test_a_torn_checkpoint_is_passed_over_and_said_so(self, whole):
        shutil.copytree(whole / 'whole', whole / 'torn')
        (whole / 'torn' / 'last_checkpoint').write_text(str(whole / 'torn' / FINAL))
        for each in (whole / 'torn').glob('*epoch_6.pth'):  # the best one may be of that epoch
            each.write_bytes(each.read_bytes()[:-1000])
        text = run_forked(whole, '--work-dir', 'torn', '--resume')
        assert f'passed over torn/{FINAL}: ' in text
        assert 'resuming from torn/epoch_5.pth: epoch 5, iteration 15' in text
        assert_same_end(whole, 'torn')

    def test_another_models_checkpoint_is_refused(self, whole):
        words = ('--resume', f'whole/{FINAL}', '--cfg-options', 'model.bbox_head.reg_max=8')
        text = failed(whole, '--work-dir', 'other', *words)
        assert 'error: The checkpoint is of another model than the config (size mismatch' in text
        words += ('custom_hooks=[]',)  # without averages, which mmengine loads strictly
        text = failed(whole, '--work-dir', 'other', *words)
        assert 'error: The checkpoint to resume from is of another model: 3 of ' in text
        assert '(bbox_head.gfl_reg.bias, bbox_head.gfl_reg.weight, ' in text


def mounted(target: Path, *words: str) -> bool:
    target.mkdir(exist_ok=True)
    command = ['mount', *words, str(target)]
    return (
        shutil.which('mount') is not None
        and not subprocess.run(command, check=False, capture_output=True).returncode
    )


@pytest.fixture
def small_disk(whole):
    """A file system with room for one checkpoint and the beginning of the next."""
    path = whole / 'small'
    if not mounted(path, '-t', 'tmpfs', '-o', 'size=5m', 'tmpfs'):
        pytest.skip('mounting a file system takes root and the right to do it')
    yield path
    subprocess.run(['umount', '-l', str(path)], check=False)


def test_a_full_disk_loses_nothing(whole, small_disk):
    words = ('--work-dir', 'small/run')
    said = ' '.join(failed(whole, *words).splitlines()[-3:])
    assert 'epoch_2.pth cannot be written (No space left on device): it needs ' in said
    assert '--resume' in said
    left = sorted(each.name for each in (small_disk / 'run').iterdir() if each.is_file())
    assert left == ['epoch_1.pth', 'epoch_1.pth.sha256', 'last_checkpoint', 'tiny.py']
    subprocess.run(['mount', '-o', 'remount,size=100m', str(small_disk)], check=True)
    text = run_forked(whole, *words, '--resume')
    assert 'resuming from small/run/epoch_1.pth: epoch 1' in text
    shutil.copytree(small_disk / 'run', whole / 'starved')
    assert_same_end(whole, 'starved')


def test_a_read_only_work_dir_is_refused_at_once(whole):
    path = whole / 'read_only'
    if not mounted(path, '-t', 'tmpfs', '-o', 'ro', 'tmpfs'):
        pytest.skip('mounting a file system takes root and the right to do it')
    try:
        text = failed(whole, '--work-dir', 'read_only/run')
    finally:
        subprocess.run(['umount', '-l', str(path)], check=False)
    assert text.startswith('error: The work dir read_only/run cannot be written')


def test_a_folder_that_is_closed_meanwhile_ends_the_training_with_a_sentence(whole):
    """An immutable folder: permissions alone do not hold root back."""
    log, work_dir = whole / 'closed.log', whole / 'closed'
    pid = fork_training(whole, log, '--work-dir', 'closed')
    wait_for_text(log, 'Saving checkpoint at 1 epochs', pid)
    closed = subprocess.run(['chattr', '+i', str(work_dir)], check=False, capture_output=True)
    try:
        if closed.returncode:
            os.kill(pid, signal.SIGKILL)
            wait_for(pid, 10)
            pytest.skip(f'this file system has no immutable folders: {closed.stderr.decode()}')
        assert wait_for(pid, LIMIT_S) == 1
        assert '.pth cannot be written (Operation not permitted): make the folder' in (
            log.read_text()
        )
    finally:
        subprocess.run(['chattr', '-i', str(work_dir)], check=False, capture_output=True)
    run_forked(whole, '--work-dir', 'closed', '--resume')
    assert_same_end(whole, 'closed')


def test_a_few_kills(project):
    """The small version of ``kill_training.py``, which does 50 and more."""
    counts = kill_training(project, kills=2, aimed=1, seed=int(os.environ.get('KILL_SEED', '7')))
    assert counts['kills'] == 3


@pytest.mark.slow
def test_many_kills(project):
    counts = kill_training(project, kills=50, aimed=20, seed=0)
    assert counts['kills'] == 70
    assert counts['resumed from a checkpoint'] > 20
    assert counts['kills within a write'] > 5
