"""Initial weights of a training: new classes and folded batch norms.

A detector's last convolution has a row per class, and in NanoDet-Plus the rows of the edges follow
in the same tensor: with another number of classes its shape differs, and mmengine would leave the
whole tensor at random values. Here the rows of the edges are kept.

Weights exported for a runtime have their batch norms folded into the convolutions, so a norm with
mean 0 and variance 1 only adds a bias. In training, a norm divides by the standard deviation of its
batch, which destroys the folded scale, and the first forward pass detects nothing. The statistics
of the norms are therefore restored from pictures: the detector's outputs stay the same, and it can
be trained.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.model import BaseModel, bias_init_with_prob
from mmengine.registry import DefaultScope
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from gfl_det.compat.checkpoint import load_file
from gfl_det.registry import HOOKS
from gfl_det.utils.files import write_whole

OUTPUT = re.compile(r'bbox_head\.gfl_cls\.\d+\.')  # NanoDet-Plus's last convolutions
PRIOR = 0.01  # initial score of a new class, as in the initialisation of the heads
PICTURES = 32  # for the statistics of folded norms


def fit_weights(cfg: Config, path: Path) -> None:
    """Adapt a checkpoint file to the classes and pictures of a config, in place.

    Args:
        cfg: Config of the training.
        path: Checkpoint of the same architecture, for any number of classes.
    """
    state = fit_state(load_file(str(path), 'cpu')['state_dict'], cfg)
    with io.BytesIO() as file:
        torch.save(dict(state_dict=state), file)
        write_whole(path, file.getvalue())


def fit_state(state: Mapping[str, Tensor], cfg: Config) -> dict[str, Tensor]:
    """Adapt a state dict to the classes of a config, and restore folded norms from its pictures.

    Args:
        state: State dict of a trained detector of the same architecture.
        cfg: Config of the training.

    Returns:
        The state dict to start from. Keys that the model does not have are dropped only if norms
        were folded.
    """
    model = _build(cfg)
    fitted = fit_classes(state, model.state_dict())
    try:
        model.load_state_dict(fitted, strict=False)
    except RuntimeError:
        return fitted  # other shapes: whoever loads it next reports them
    norms = folded_norms(model)
    if not norms:
        return fitted
    unfold_norms(model, norms, _pictures(cfg, model))
    return model.state_dict()


@HOOKS.register_module()
class FoldedNormsHook(Hook):
    """Restores the folded batch norms of weights that a training starts from (``load_from``).

    Trainings by ``gfl-det train`` have it. A resumed checkpoint, a test and weights without folded
    norms are left as they are.
    """

    priority = 'HIGH'  # before EMA copies the weights

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Replace the weights before they reach the model.

        Args:
            runner: Runner that loads the checkpoint.
            checkpoint: Content of the file; changed in place.
        """
        state = checkpoint.get('state_dict', checkpoint)
        training = isinstance(runner._train_loop, BaseLoop)
        if not training or runner._resume or not holds_folded_norms(state):
            return
        runner.logger.info('The weights have folded batch norms: their statistics are restored.')
        checkpoint['state_dict'] = fit_state(state, runner.cfg)


def fit_classes(state: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the class rows of NanoDet-Plus's last convolutions and keep the edge rows.

    Args:
        state: State dict of a trained detector.
        needed: State dict of the detector to train, whose number of classes may differ.

    Returns:
        The state dict; new rows have weight 0 and the bias of a score of 0.01.

    Example:
        >>> project = {'bbox_head.integral.project': torch.arange(8.0)}
        >>> old = {'bbox_head.gfl_cls.0.bias': torch.ones(80 + 32), **project}
        >>> new = fit_classes(old, {'bbox_head.gfl_cls.0.bias': torch.zeros(3 + 32)})
        >>> new['bbox_head.gfl_cls.0.bias'][[0, 2, 3, 34]]
        tensor([-4.5951, -4.5951,  1.0000,  1.0000])
    """
    fitted = dict(state)
    for key, value in needed.items():
        if not OUTPUT.match(key) or state[key].shape == value.shape:
            continue
        edges = 4 * len(state['bbox_head.integral.project'])
        fitted[key] = torch.zeros_like(value)
        if key.endswith('bias'):
            fitted[key].fill_(bias_init_with_prob(PRIOR))
        fitted[key][-edges:] = state[key][-edges:]
    return fitted


def folded_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Batch norms that only add a bias: mean 0, variance 1, and a weight that cancels epsilon.

    The norms of a new model do not qualify, as their weight is 1.
    """
    return [each for each in model.modules() if isinstance(each, nn.BatchNorm2d) and _folded(each)]


def holds_folded_norms(state: Mapping[str, Any]) -> bool:
    """Whether a state dict has a batch norm with mean 0, variance 1 and one equal weight above 1.

    Example:
        >>> weight, names = torch.full((2,), 1 + 5e-6), ('running_mean', 'running_var', 'weight')
        >>> values = torch.zeros(2), torch.ones(2), weight
        >>> holds_folded_norms({f'bn.{name}': value for name, value in zip(names, values)})
        True
    """
    for key, mean in state.items():
        if not key.endswith('.running_mean'):
            continue
        name = key.removesuffix('running_mean')
        var, weight = state.get(f'{name}running_var'), state.get(f'{name}weight')
        if var is None or weight is None or not len(weight):
            continue
        scaled = weight[0] > 1 and (weight == weight[0]).all()
        if (mean == 0).all() and (var == 1).all() and scaled:
            return True
    return False


def _folded(norm: nn.BatchNorm2d) -> bool:
    mean, var, weight = norm.running_mean, norm.running_var, norm.weight
    if mean is None or var is None:
        return False
    scale = torch.full_like(weight, (1 + norm.eps) ** 0.5)
    return bool((mean == 0).all() and (var == 1).all() and (weight == scale).all())


@torch.no_grad()
def unfold_norms(
    model: BaseModel, norms: Iterable[nn.BatchNorm2d], batches: Iterable[Tensor]
) -> None:
    """Give folded norms the statistics of their inputs; the outputs of the model do not change.

    A norm that adds ``b`` gets the mean m and the variance v of its input, the weight
    ``sqrt(v + eps)`` and the bias ``b + m``.

    Args:
        model: Single-stage detector.
        norms: Result of :func:`folded_norms`.
        batches: Preprocessed pictures, each ``(B, 3, H, W)``.
    """
    sums: dict[Any, list[Any]] = {}

    def add(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double()
        dims = (0, 2, 3)
        found = [values.numel() / values.shape[1], values.sum(dims), values.square().sum(dims)]
        before = sums.get(norm, [0, 0, 0])
        sums[norm] = [old + new for old, new in zip(before, found)]

    model.eval()
    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(add).remove)
        for images in batches:
            model.bbox_head(model.extract_feat(images))
    for norm, (count, total, squares) in sums.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)


def _build(cfg: Config) -> BaseModel:
    settings = Config(dict(model=cfg.model.to_dict())).model
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet'):
        return MODELS.build(settings)


def _pictures(cfg: Config, model: BaseModel) -> Iterator[Tensor]:
    """Evenly spaced pictures of the training split, preprocessed as for testing."""
    settings = cfg.train_dataloader.dataset.to_dict()
    settings['pipeline'] = cfg.test_dataloader.dataset.pipeline
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet'):
        dataset = DATASETS.build(settings)
    step = max(1, len(dataset) // PICTURES)
    for index in range(0, len(dataset), step)[:PICTURES]:
        batch = pseudo_collate([dataset[index]])
        yield model.data_preprocessor(batch, False)['inputs']
