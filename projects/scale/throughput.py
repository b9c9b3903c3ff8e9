"""Pictures per second and memory of ``gfl-det infer-many``, beside the single process.

    python -m projects.scale.throughput CHECKPOINT WORK_DIR --workers 0 1 2 --pictures 48
    python -m projects.scale.throughput tiny WORK_DIR --workers 1 --pictures 2000 20000 200000
        --size 64 64 --shard-size 1000 --batch-size 64

The pictures are drawn at random and kept in WORK_DIR. ``tiny`` is a detector of random weights for
pictures of 64 x 64, which takes 2 ms and finds a box in a fifth of them. Each arrangement is run
once per number of pictures, each detector with one thread. Rates leave out the start: that of W
workers counts the pictures after the first W shards, between the times at which shards were
committed. Zero workers are ``gfl-det infer``, the single process, which prints its own rate. Memory
is the largest sum over the processes of what each holds alone and its part of what it shares (PSS),
looked at every two seconds: looking takes time too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import cv2
import numpy as np
import psutil
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

import gfl_det
from gfl_det.cli import main as cli
from gfl_det.errors import SetupError
from gfl_det.inference.shards import ResultFolder
from gfl_det.utils.files import write_json
from projects.provenance import processor

LOOKS = 2.0  # seconds between two looks at the memory
DRAWN = 100  # different pictures; more are links to them


class Measured(NamedTuple):
    """One run of a command."""

    workers: int
    pictures: int
    seconds: float
    peak_gib: float
    rate: float  # pictures per second, without the start; NaN if there are too few shards


def pictures(folder: Path, number: int, size: Sequence[int]) -> Path:
    """A folder of JPEG files, made once; the same content returns after `DRAWN` files."""
    here = folder / f'pictures-{number}-{size[0]}x{size[1]}'
    if here.is_dir():
        return here
    part = here.with_suffix('.part')
    shutil.rmtree(part, ignore_errors=True)
    rng = np.random.default_rng(0)
    part.mkdir(parents=True)
    for index in range(number):
        path = part / f'{index:07}.jpg'
        if index < DRAWN:
            coarse = rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), np.uint8)
            cv2.imwrite(str(path), cv2.resize(coarse, tuple(size), interpolation=cv2.INTER_CUBIC))
        else:
            os.link(part / f'{index % DRAWN:07}.jpg', path)
    part.rename(here)
    return here


def write_tiny(folder: Path) -> Path:
    """Write the checkpoint of the tiny detector, with its config."""
    register_all_modules()
    cfg = gfl_det.get_config('gfl_r18_fpn_digits')
    cfg.model.backbone.update(stem_channels=8, base_channels=8)
    cfg.model.neck.update(in_channels=[16, 32, 64], out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    cfg.model.test_cfg.update(score_thr=0.63, max_per_img=10)  # a fifth of the pictures
    for step in cfg.test_dataloader.dataset.pipeline:
        if step['type'] == 'Resize':
            step['scale'] = (64, 64)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=cfg.classes))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / 'tiny.pth')
    return folder / 'tiny.pth'


def measure(
    words: Sequence[str], looks: float = LOOKS, told: IO[bytes] | None = None
) -> tuple[float, float]:
    """Seconds of a command, and its largest memory in GiB.

    Args:
        words: The command.
        looks: Seconds between two looks at the memory.
        told: File for what the command prints; None: it is not kept.

    Raises:
        SetupError: If the command fails.
    """
    begin, peak = time.monotonic(), 0
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with subprocess.Popen(words, env=environment, stdout=told or subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, sum(_held(psutil.Process(process.pid))))
            with suppress(subprocess.TimeoutExpired):
                process.wait(looks)
    if process.returncode:
        raise SetupError(f'{" ".join(words)} ended with {process.returncode}: see above.')
    return time.monotonic() - begin, peak / 2**30


def _held(process: psutil.Process) -> Iterator[int]:
    """Bytes of a process and of all that it has started."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        try:
            lines = Path(f'/proc/{each.pid}/smaps_rollup').read_text().splitlines()
        except OSError:  # it has just ended
            continue
        yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith('Pss:'))


def run(args: argparse.Namespace) -> list[Measured]:
    """Measure every arrangement, the smaller numbers of pictures first."""
    tiny = args.checkpoint == 'tiny'
    checkpoint = str(write_tiny(args.work_dir)) if tiny else args.checkpoint
    found = []
    for number, workers in itertools.product(sorted(args.pictures), args.workers):
        folder, out = pictures(args.work_dir, number, args.size), args.work_dir / 'out'
        shutil.rmtree(out, ignore_errors=True)
        words = [sys.executable, '-m', 'gfl_det', 'infer-many' if workers else 'infer']
        words += [checkpoint, str(folder), '--out', str(out) if workers else f'{out}.json']
        words += ['--device', 'cpu', '--batch-size', str(args.batch_size)]
        if workers:
            words += ['--workers', str(workers), '--shard-size', str(args.shard_size), '--quiet']
        with TemporaryFile() as told:
            seconds, peak = measure(words, told=told)
            told.seek(0)
            rate = rate_of_shards(out, workers) if workers else rate_of_stream(told.read())
        found.append(Measured(workers, number, seconds, peak, rate))
        print(
            f'{workers} workers, {number:,} pictures: {seconds:.1f} s, {peak:.2f} GiB, '
            f'{rate:.2f} pictures a second',
            flush=True,
        )
    return found


def rate_of_stream(text: bytes) -> float:
    """Pictures per second that ``gfl-det infer`` has printed."""
    return float(re.findall(rb'([\d.]+) a second', text)[-1])


def rate_of_shards(out: Path, workers: int) -> float:
    """Pictures per second of a run, from the times at which its shards were committed.

    With equal shards the first one of each worker ends at about the same time. From then on all
    work, until the last shards are committed.
    """
    folder = ResultFolder(out)
    parts = sorted(folder.parts(), key=lambda part: part.stat().st_mtime_ns)
    if len(parts) <= workers:
        return float('nan')
    spent = (parts[-1].stat().st_mtime_ns - parts[workers - 1].stat().st_mtime_ns) / 1e9
    return sum(folder.counts(part).images for part in parts[workers:]) / spent


def main() -> None:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('checkpoint', help='a checkpoint, or tiny')
    add('work_dir', type=Path)
    add('--workers', type=int, nargs='+', default=[0, 1, 2], help='0: one process without Ray')
    add('--pictures', type=int, nargs='+', default=[48])
    add('--size', type=int, nargs=2, default=[640, 480], metavar=('W', 'H'))
    add('--shard-size', type=int, default=4)
    add('--batch-size', type=int, default=1)
    add('--out', type=Path, metavar='FILE.json')
    args = parser.parse_args()
    found = run(args)
    if args.out:
        runs = [each._asdict() for each in found]
        write_json(args.out, dict(processor=processor(), runs=runs), indent=1)


if __name__ == '__main__':
    cli.run(main)
