"""``gfl-det infer-many``: the rows of the stream, whatever happens to the processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gfl_det.cli.infer_many import parse_arguments, run
from gfl_det.errors import DataError
from gfl_det.inference import GFLInferencer
from gfl_det.inference.many import DetectorSettings
from gfl_det.inference.shards import ResultFolder, Shard
from tests.helpers.extras import needs
from tests.helpers.fatal import DEADLY, STALLING, mark, write_fatal_config
from tests.helpers.inferring import CLASSES, small_config, write_checkpoint, write_images
from tests.helpers.paths import ROOT

pytestmark = needs('ray')
pq = pytest.importorskip('pyarrow.parquet')


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A checkpoint, and eight images: six files, one of them torn, and two in a tar."""
    folder = tmp_path_factory.mktemp('many')
    checkpoint, paths = write_checkpoint(folder), write_images(folder / 'in', 8)
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    with tarfile.open(folder / 'in' / 'more.tar', 'w') as tar:
        for path in paths[6:]:
            tar.add(path, path.name)
            path.rename(folder / path.name)
    return folder, checkpoint


def test_the_rows_are_those_of_the_stream(project, monkeypatch, capsys):
    folder, checkpoint = project
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    out = folder / 'out'
    names = [dict(id=n, file_name=f'{n}.png') for n in range(1, 9)]
    categories = [dict(id=n, name=name) for n, name in enumerate(CLASSES, 1)]
    labels = folder / 'labels.json'
    labels.write_text(json.dumps(dict(images=names, categories=categories, annotations=[])))
    words = f'{checkpoint} {folder / "in"} --out {out} --shard-size 4 --quiet --device cpu '
    words += f'--to-coco {folder / "coco.json"} --annotations {labels}'
    args = parse_arguments(words.split())
    run(args)
    assert '8 images' in capsys.readouterr().out
    table = pq.read_table(out / 'detections').to_pandas()
    found = GFLInferencer(checkpoint, device='cpu')
    for path in [*sorted((folder / 'in').glob('*.png')), folder / '7.png', folder / '8.png']:
        rows = table[table.image.astype(str).str.endswith(f'/{path.name}')]
        if path.name == '2.png':
            assert not len(rows)
            continue
        (expected,) = found(str(path), progress=False)
        assert rows.x1.tolist() == expected.instances.bboxes[:, 0].tolist()
        assert rows.score.tolist() == expected.instances.scores.tolist()
        assert rows.edge_high_top.tolist() == expected.instances.edge_high[:, 1].tolist()
        assert rows.label.astype(int).tolist() == expected.instances.labels.tolist()
    (failure,) = pq.read_table(out / 'failures').to_pylist()
    assert failure['image'].endswith('/2.png')
    assert len(json.loads((folder / 'coco.json').read_text())) == len(table)
    before = {path: path.read_bytes() for path in out.rglob('*.parquet')}
    run(args)  # nothing is left to do
    assert 'in this run' not in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in out.rglob('*.parquet')}


def command(folder: Path, checkpoint: Path, out: Path, *more: str) -> list[str]:
    words = [str(checkpoint), str(folder), '--out', str(out), '--device', 'cpu', *more]
    return [sys.executable, '-m', 'gfl_det', 'infer-many', *words]


def environment() -> dict[str, str]:
    return {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}


def rows_of(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob('*.parquet')}


@pytest.mark.slow
def test_pictures_that_end_or_stall_their_process_are_set_aside(tmp_path):
    checkpoint, paths = write_checkpoint(tmp_path), write_images(tmp_path / 'in', 16)
    mark(paths[4], DEADLY)
    mark(paths[9], STALLING)
    config = write_fatal_config(tmp_path / 'fatal.py')
    more = ('--shard-size', '8', '--config', str(config), '--patience', '15', '--quiet')
    subprocess.run(
        command(tmp_path / 'in', checkpoint, tmp_path / 'out', *more), env=environment(), check=True
    )
    failures = pq.read_table(tmp_path / 'out' / 'failures').to_pylist()
    reasons = {Path(each['image']).name: each['reason'] for each in failures}
    assert set(reasons) == {'5.png', '10.png'}
    assert 'SIGSEGV' in reasons['5.png']
    assert 'stalled' in reasons['10.png']
    assert len(set(pq.read_table(tmp_path / 'out' / 'detections')['image'].to_pylist())) == 14


@pytest.mark.slow
def test_killed_at_random_moments_the_rows_are_those_of_an_undisturbed_run(tmp_path):
    """Kills actors, the node's raylet, and the command itself.

    GFL_KILLS and GFL_PICTURES say how many, GFL_PAUSE the longest time between them in seconds.
    """
    kills, number = int(os.environ.get('GFL_KILLS', 6)), int(os.environ.get('GFL_PICTURES', 400))
    longest = float(os.environ.get('GFL_PAUSE', 12))
    cfg = small_config()
    for step in cfg.test_dataloader.dataset.pipeline:
        if step['type'] == 'Resize':
            step['scale'] = (64, 64)  # a few ms a picture
    checkpoint = write_checkpoint(tmp_path, cfg)
    paths = write_images(tmp_path / 'in', 20, (64, 64))
    for index in range(20, number):
        shutil.copy(paths[index % 20], tmp_path / 'in' / f'{index + 1}.png')
    more = ('--shard-size', '25', '--workers', '2', '--quiet')
    undisturbed, out = tmp_path / 'undisturbed', tmp_path / 'out'
    subprocess.run(
        command(tmp_path / 'in', checkpoint, undisturbed, *more), env=environment(), check=True
    )
    rng = random.Random(0)
    process, begin = None, time.monotonic()
    while kills or process is None or process.poll() != 0:
        if process is None or process.poll() is not None:
            again = command(tmp_path / 'in', checkpoint, out, *more)
            process = subprocess.Popen(again, env=environment(), start_new_session=True)
            if kills and rng.random() < 0.75:  # the others may be killed while they start
                wait_for_work(process, out)
        time.sleep(rng.uniform(1, longest) if kills else 1)
        if process.poll() == 0 and kills:
            print('done before the last kill: from the beginning')
            shutil.rmtree(out)
        elif kills and process.poll() is None:
            victim = rng.choice(['driver', 'MapWorker', 'MapWorker', 'raylet'])
            done = len(list(out.glob('detections/part-*.parquet')))
            if kill(process, victim, rng):
                kills -= 1
                seconds = time.monotonic() - begin
                print(f'{seconds:.0f} s: {victim} killed after {done} shards', flush=True)
    assert rows_of(out) == rows_of(undisturbed)
    assert ResultFolder(out).manifest()['totals']['images'] == number


def wait_for_work(process: subprocess.Popen, out: Path, patience: float = 300.0) -> None:
    """Wait until a run has committed a shard."""
    before, begin = len(list(out.glob('detections/part-*.parquet'))), time.monotonic()
    while process.poll() is None and time.monotonic() - begin < patience:
        if len(list(out.glob('detections/part-*.parquet'))) > before:
            return
        time.sleep(0.1)


def kill(driver: subprocess.Popen, victim: str, rng: random.Random) -> bool:
    """Kill the command, or one of the processes of a kind that it runs; False if there is none."""
    import psutil

    pids = [driver.pid] if victim == 'driver' else []
    if victim != 'driver':
        for each in psutil.Process(driver.pid).children(recursive=True):
            with suppress(psutil.Error, IndexError):  # it has just ended
                pids += [each.pid] if victim in each.cmdline()[0] else []
    if not pids:
        return False
    os.kill(rng.choice(pids), signal.SIGKILL)
    if victim == 'driver':
        driver.wait()
    return True


def test_this_ray_holds_decoding_back_from_the_start():
    """The variable that many.py sets acts: without it memory grows with the number of images."""
    from ray.data._internal.execution import backpressure_policy as policies

    policy = policies.DownstreamCapacityBackpressurePolicy
    assert policy in policies.ENABLED_BACKPRESSURE_POLICIES
    assert policy.OBJECT_STORE_BUDGET_UTIL_THRESHOLD == 0


def test_parts_are_named_by_the_number_of_their_shard():
    assert Shard(12, ('a',)).part == 'part-000012.parquet'


def test_settings_name_the_weights_and_not_the_work_dir(tmp_path):
    """A better checkpoint or other OpenVINO weights are another run."""
    (tmp_path / 'config.py').write_text('model = dict()')
    (tmp_path / 'best_AP_epoch_1.pth').write_text('one')
    first = DetectorSettings(str(tmp_path), str(tmp_path)).resolved()
    assert first.checkpoint == str(tmp_path / 'best_AP_epoch_1.pth')
    assert first.config == str(tmp_path / 'config.py')
    (tmp_path / 'best_AP_epoch_1.pth').unlink()
    (tmp_path / 'best_AP_epoch_2.pth').write_text('two')
    (tmp_path / 'best_AP_epoch_1.pth').write_text('one')
    os.utime(tmp_path / 'best_AP_epoch_1.pth', ns=(0, 0))
    second = DetectorSettings(str(tmp_path), str(tmp_path)).resolved()
    assert first.manifest()['checkpoint'] != second.manifest()['checkpoint']
    exported = DetectorSettings(str(tmp_path / 'x.xml'))
    sums = set()
    (tmp_path / 'x.xml').write_text('graph')
    for weights in ('a', 'b'):
        (tmp_path / 'x.bin').write_text(weights)
        sums.add(exported.manifest()['checkpoint'])
    assert len(sums) == 2


def test_annotations_of_another_kind_are_refused_before_the_work(tmp_path):
    words = ['no.pth', str(tmp_path), '--out', str(tmp_path / 'out'), '--quiet']
    for name, content in (('list.json', '[]'), ('bare.json', '{}')):
        (tmp_path / name).write_text(content)
        coco = ['--to-coco', str(tmp_path / 'coco.json'), '--annotations', str(tmp_path / name)]
        with pytest.raises(DataError, match='annotation'):
            run(parse_arguments([*words, *coco]))
    assert not (tmp_path / 'out').exists()
