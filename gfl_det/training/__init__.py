"""What a training leaves behind and goes on from: whole files, exact states, the order of data."""

from .checkpoints import Candidate, choose_checkpoint, newest_checkpoint
from .files import WholeFileBackend, is_intact, write_whole
from .loop import EpochTrainLoop
from .sharding import ShardedDataParallel

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
