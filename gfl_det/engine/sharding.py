"""mmengine's FSDP for models with parameters of no dimension, such as the scales of GFL's head."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from mmengine.model import MMFullyShardedDataParallel
from torch import nn

from gfl_det.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class ShardedDataParallel(MMFullyShardedDataParallel):
    """``MMFullyShardedDataParallel`` that keeps scalar parameters whole in each process.

    FSDP cannot shard a scalar and refuses the model. The few there are stay out of it; their
    gradients are averaged over the processes as soon as they are there, as those of the others are.

    Args:
        module: to be wrapped.
        device_id: where to; None keeps the model where it is, which a processor needs.
        **kwargs: mmengine's.
    """

    def __init__(self, module: nn.Module, device_id: Any = None, **kwargs: Any) -> None:
        scalars = [each for each in module.parameters() if each.dim() == 0]
        for each in scalars:
            each.register_hook(_average)
        super().__init__(module, device_id=device_id, ignored_states=scalars, **kwargs)


def _average(gradient: Any) -> Any:
    gradient = gradient / dist.get_world_size()
    dist.all_reduce(gradient)
    return gradient
