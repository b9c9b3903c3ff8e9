"""Files of installed packages that mmengine reads anew for each config, read once.

For each ``_base_ = 'mmdet::...'`` mmengine parses the hundred files of mmdet's model index and
reloads ``pkg_resources``: .4 s of processor time a config, several hundred times in this suite.
Importing this module makes it remember both; what is in a config is still read from its own file.
"""

from __future__ import annotations

import functools

from mmengine.config import config, utils

utils.load = functools.cache(utils.load)
config.is_installed = functools.cache(config.is_installed)
