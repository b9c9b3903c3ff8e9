"""Exact resumption of a training: checkpoints, random generators, data order."""

from gfl_det.engine.amp import ShardedDataParallel
from gfl_det.engine.training.checkpoints import (
    Candidate,
    WholeFileBackend,
    choose_checkpoint,
    newest_checkpoint,
)
from gfl_det.engine.training.loop import EpochTrainLoop
from gfl_det.utils.files import is_intact, write_whole

__all__ = [
    'Candidate',
    'EpochTrainLoop',
    'ShardedDataParallel',
    'WholeFileBackend',
    'choose_checkpoint',
    'is_intact',
    'newest_checkpoint',
    'write_whole',
]
