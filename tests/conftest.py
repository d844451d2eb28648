"""Which tests begin first: those that take long, so that none of them is what all others wait for. And how slow a busy
machine may be: how long hypothesis takes to think of something says nothing of the code."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Minutes, or most of one, on two processors; the longest first.
LONG = ("test_two_servers.py", "test_pair_services.py", "test_qemu_mirrored.py", "test_explore.py", "test_programs.py")

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-xdist gives each worker a run of neighbours to begin with: these go to the front of the runs."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = len(items) // workers
    first = sorted((item for item in items if item.path.name in LONG), key=lambda item: LONG.index(item.path.name))
    items[:] = [item for item in items if item.path.name not in LONG]
    for number, item in enumerate(first):
        items.insert(number % workers * share + number // workers, item)
