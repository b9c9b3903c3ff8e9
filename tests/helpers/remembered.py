"""What mmengine does over and over that costs more than what is tested, done once or not at all.

For each ``_base_ = 'mmdet::...'`` mmengine parses the hundred files of mmdet's model index and
reloads ``pkg_resources``: .4 s of processor time a config, several hundred times in this suite.
Importing this module makes it remember both; what is in a config is still read from its own file.
The text of a config is laid out by yapf for each log and each checkpoint, which takes longer than
a training of three steps: here it stays on long lines. Compilers are not surveyed for the log.

Each data set collects garbage: .2 s of looking at what torch and mmdet have imported, and in a fork
a copy of all the memory that is looked at. :func:`freeze` takes what there is out of that, and lets
the many small objects of a traced graph be looked at less often than by default.
"""

from __future__ import annotations

import functools
import gc

import mmengine.runner.runner
from mmengine.config import config, utils

utils.load = functools.cache(utils.load)
config.is_installed = functools.cache(config.is_installed)
config.FormatCode = lambda text, **_: (text, True)
mmengine.runner.runner.collect_env = dict


def freeze() -> None:
    """Exempt all objects that there are from garbage collection, in this process and its forks."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


freeze()
