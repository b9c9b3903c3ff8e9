"""What every test shares: the same random numbers in each run and in any order, one thread."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

import gfl_det  # noqa: F401  (before any test imports mmdet, which may lack operators)
from tests.helpers import remembered  # mmengine is slow without
from tests.helpers.bounds import bounds  # noqa: F401  (a fixture)
from tests.helpers.tiny_project import pets  # noqa: F401  (a fixture)

# The same examples in each run, and no deadline: machines of CI are busy.
settings.register_profile('suite', derandomize=True, deadline=None)
settings.load_profile('suite')
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker('slow'):
            item.add_marker(pytest.mark.timeout(7200))


def pytest_collection_finish() -> None:
    remembered.freeze()  # with what the test modules have imported
