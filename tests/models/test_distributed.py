"""Two processes with half the batch each are one process with the whole batch."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.processes import CASES, SIZE, run_in_two

KINDS = ('GFLHead', 'LDHead')


def _batch(counts: tuple) -> tuple:
    from tests.helpers.heads import make_gts, make_maps, make_meta

    generator = torch.Generator().manual_seed(0)
    maps = make_maps(len(counts), SIZE, generator)
    gts = [make_gts(count, SIZE, generator) for count in counts]
    return maps, gts, [make_meta(SIZE) for _ in counts]


def _head(kind: str, images: slice) -> Any:
    from mmdet.registry import MODELS

    import gfl_det  # noqa: F401
    from tests.helpers.heads import Taught, head_config, make_maps

    torch.manual_seed(0)
    if kind == 'GFLHead':
        return MODELS.build(head_config(True))
    term = dict(type='gfl_det.DistillationLoss', loss_weight=0.25, T=10)
    terms = dict(loss_ld=term, loss_ld_vlr=term, loss_kd=term)
    teacher = make_maps(4, SIZE, torch.Generator().manual_seed(1), num_bins=9)
    mine = tuple([level[images] for level in each] for each in teacher)
    return Taught(MODELS.build(head_config(True, type='gfl_det.LDHead', **terms)), mine)


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    from tests.helpers.heads import losses_and_gradients

    for name, (counts, first) in CASES.items():
        maps, gts, metas = _batch(counts)
        mine = slice(first, None) if rank else slice(first)
        half = tuple([level[mine] for level in kind] for kind in maps)
        for kind in KINDS:
            head = _head(kind, mine)
            result = losses_and_gradients(head, half, gts[mine], metas[mine])
            torch.save(result, os.path.join(folder, f'{kind} {name} {rank}.pt'))
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    from tests.helpers.heads import losses_and_gradients

    run_in_two(_process, str(tmp_path))
    for kind, (name, (counts, _)) in product(KINDS, CASES.items()):
        parts = [torch.load(tmp_path / f'{kind} {name} {rank}.pt') for rank in (0, 1)]
        values, gradients = losses_and_gradients(_head(kind, slice(4)), *_batch(counts))
        for key, value in values.items():
            mean = (parts[0][0][key] + parts[1][0][key]) / 2  # what DDP's averaging makes of them
            assert abs(mean - value) <= 1e-5 * max(abs(value), 1e-6), key
        for index, whole in enumerate(gradients):
            joined = torch.cat([part[1][index] for part in parts]) / 2
            torch.testing.assert_close(joined, whole, rtol=1e-4, atol=1e-6)
