"""A project to train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.project import make_project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / 'project')
