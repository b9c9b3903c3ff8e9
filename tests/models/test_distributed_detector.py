"""A whole detector in two processes: one training step, and one that the loss guard skips."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from tests.helpers.processes import CASES, SIZE, run_in_two


def _detector(folder: str) -> torch.nn.Module:
    """A whole detector; its batch norms are at rest, for their statistics are those of a part."""
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    import gfl_det  # noqa: F401
    from tests.helpers.project import CONFIG

    path = Path(folder) / f'detector_{os.getpid()}.py'
    path.write_text(CONFIG.replace('DroppingFPN', 'FPN').replace(", 'dropping'", ''))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        config = Config.fromfile(path).model
        config.backbone.norm_eval = True
        return MODELS.build(config).train()


def _images(counts: tuple) -> dict:
    from mmdet.structures import DetDataSample

    from tests.helpers.heads import make_gts, make_meta

    generator = torch.Generator().manual_seed(0)
    samples = []
    for count in counts:
        gt = make_gts(count, SIZE, generator)
        gt.labels = gt.labels % 2
        sample = DetDataSample(gt_instances=gt)
        sample.set_metainfo(make_meta(SIZE))
        samples.append(sample)
    images = [torch.rand(3, *SIZE, generator=generator) * 255 for _ in counts]
    return dict(inputs=images, data_samples=samples)


def _train_step(model: torch.nn.Module, batch: dict) -> dict:
    """Losses, gradients before the step, and weights after it."""
    from mmengine.optim import OptimWrapper

    gradients = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(each.grad.clone() for each in model.parameters())
    )
    losses = model.train_step(batch, OptimWrapper(optimizer))
    return dict(
        losses={key: value.detach() for key, value in losses.items()},
        gradients=gradients,
        weights=[each.detach().clone() for each in model.parameters()],
    )


def _guarded_step(model: torch.nn.Module, batch: dict, folder: str) -> list[torch.Tensor]:
    """Weights after a step that the loss guard is to skip in both processes."""
    from types import SimpleNamespace

    from mmengine.config import Config
    from mmengine.logging import MessageHub
    from mmengine.optim import OptimWrapper

    from gfl_det.engine.hooks import LossGuardHook

    logger = SimpleNamespace(warning=lambda message: None)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, work_dir=folder, logger=logger)
    hub = MessageHub.get_instance('guarded')
    vars(runner).update(iter=0, epoch=0, cfg=Config(), message_hub=hub)
    guard = LossGuardHook('skip')
    guard.before_train(runner)
    guard.before_train_iter(runner, 0)
    model.train_step(batch, wrapper)
    guard.after_train(runner)
    return [each.detach().clone() for each in model.parameters()]


def _part(batch: dict, part: slice) -> dict:
    return {key: value[part] for key, value in batch.items()}


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    from mmengine.model import MMDistributedDataParallel

    for name, (counts, first) in CASES.items():
        mine = slice(first, None) if rank else slice(first)
        model = MMDistributedDataParallel(_detector(folder), broadcast_buffers=False)
        step = _train_step(model, _part(_images(counts), mine))
        torch.save(step, os.path.join(folder, f'{name} {rank}.pt'))
    # Only one process has a loss that is not finite, of a kind that no gradient tells of.
    model = MMDistributedDataParallel(_detector(folder), broadcast_buffers=False)
    if rank:
        inner = model.module.bbox_head.loss
        model.module.bbox_head.loss = lambda *args: (
            inner(*args) | {'loss_more': torch.tensor(float('inf'))}
        )
    weights = _guarded_step(model, _part(_images((5, 2, 0, 7)), mine), folder)
    torch.save(weights, os.path.join(folder, f'guarded {rank}.pt'))
    dist.destroy_process_group()


def _close(found: torch.Tensor, expected: torch.Tensor, largest: float) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * largest)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    run_in_two(_process, str(tmp_path))
    for name, (counts, _) in CASES.items():
        steps = [torch.load(tmp_path / f'{name} {rank}.pt') for rank in (0, 1)]
        whole = _train_step(_detector(str(tmp_path)), _images(counts))
        for key, value in whole['losses'].items():
            mean = (steps[0]['losses'][key] + steps[1]['losses'][key]) / 2
            torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6)
        largest = max(float(each.abs().max()) for each in whole['gradients'])
        for kind in ('gradients', 'weights'):
            for index, expected in enumerate(whole[kind]):
                _close(steps[0][kind][index], expected, largest)
                assert torch.equal(steps[0][kind][index], steps[1][kind][index])

    before = list(_detector(str(tmp_path)).parameters())
    for rank in (0, 1):
        after = torch.load(tmp_path / f'guarded {rank}.pt')
        assert all(torch.equal(one, other) for one, other in zip(before, after))
        assert (tmp_path / 'non_finite' / f'iter_1_rank_{rank}.pt').is_file()
