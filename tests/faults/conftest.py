"""A project to train on, and the helpers of these tests on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from project import make_project  # noqa: E402  (its folder must be on the path)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / 'project')
