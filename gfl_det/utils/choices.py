"""Names and limits that command lines offer and state, readable without torch.

A command's ``--help`` and its completion in a shell must not load what the command works with.
What a name stands for lies where it acts; tests hold the two together.
"""

from __future__ import annotations

from typing import NamedTuple

# gfl_det.inference.optimize: what detectors can be run in.
DTYPES = ('float32', 'bfloat16', 'float16')

# gfl_det.engine.config_edits: what happens at a non-finite loss, and who else gets the metrics.
GUARDS = ('stop', 'skip', 'off')
BACKENDS = {'tensorboard': 'TensorboardVisBackend', 'wandb': 'WandbVisBackend'}
LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')

# gfl_det.swap: the heads that can be put into another detector's config.
SWAP_HEADS = ('GFLHead', 'GFLv2Head')

# gfl_det.calibration: kinds of score maps, and what a distribution calibrator reads.
FIT_METHODS = ('identity', 'temperature', 'platt', 'linear', 'isotonic')
EVIDENCE_GROUPS = ('score', 'distribution', 'overlap', 'box')
DEFAULT_EVIDENCE = EVIDENCE_GROUPS[:3]

# gfl_det.inference.export: those that the exporter writes and the runtimes read.
OPSETS = range(18, 24)
# How far an exported file may be from torch: of scores; px.
SCORE_LIMIT, BOX_LIMIT = 1e-4, 0.05
# px; nats. Where a distribution is thin a quantile moves far for a rounding: the ends of intervals
# of trained detectors differed by up to .001 px at the level .9, .02 at .99 and .13 at .999.
EDGE_LIMIT, ENTROPY_LIMIT = 0.25, 1e-3

# gfl_det.visualization.charts: files that a figure can be written to.
CHART_ENDINGS = ('.jpg', '.pdf', '.png', '.svg')


class AdviceLimits(NamedTuple):
    """What advice on ``reg_max`` and the pyramid has to keep to."""

    unassigned: float = 0.01  # share of gt boxes without a positive
    clipped: float = 0.005  # share of positives with an edge beyond reg_max
