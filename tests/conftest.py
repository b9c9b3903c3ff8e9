"""Imports what every test shares, but not into the process that only hands tests out to others."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')  # on tensors this small, threads mostly wait


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, 'workerinput') or config.getoption('dist', 'no') == 'no':
        config.pluginmanager.import_plugin('tests.helpers.every_test')
