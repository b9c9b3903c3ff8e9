"""Names and limits offered by command lines, importable without torch.

A command's ``--help`` and shell completion must not load the modules that the command uses. Each
name is defined where it acts; tests keep both in agreement.
"""

from __future__ import annotations

from typing import NamedTuple

# gfl_det.inference.optimize: dtypes of detectors.
DTYPES = ('float32', 'bfloat16', 'float16')

# gfl_det.engine.config_edits: actions at a non-finite loss, and additional metric loggers.
GUARDS = ('stop', 'skip', 'off')
BACKENDS = {'tensorboard': 'TensorboardVisBackend', 'wandb': 'WandbVisBackend'}
LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')

# gfl_det.swap: heads that can replace the head of another detector's config.
SWAP_HEADS = ('GFLHead', 'GFLv2Head')

# gfl_det.calibration: kinds of score maps, and inputs of distribution calibrators.
FIT_METHODS = ('identity', 'temperature', 'platt', 'linear', 'isotonic')
EVIDENCE_GROUPS = ('score', 'distribution', 'overlap', 'box')
DEFAULT_EVIDENCE = EVIDENCE_GROUPS[:3]

# gfl_det.inference.export: formats of the exporter and the runtimes.
OPSETS = range(18, 24)
# Largest difference between an exported file and torch: scores; px.
SCORE_LIMIT, BOX_LIMIT = 1e-4, 0.05
# px; nats. Rounding moves quantiles most at high levels, where distributions are thin.
EDGE_LIMIT, ENTROPY_LIMIT = 0.25, 1e-3

# gfl_det.visualization.charts: file formats of figures.
CHART_ENDINGS = ('.jpg', '.pdf', '.png', '.svg')


class AdviceLimits(NamedTuple):
    """Limits for advice on ``reg_max`` and the pyramid."""

    unassigned: float = 0.01  # fraction of gt boxes without a positive
    clipped: float = 0.005  # fraction of positives with an edge beyond reg_max
