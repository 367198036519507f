"""Fixtures for all tests: prepared data go to a temporary folder, never to the user's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Tests run side by side; more threads than cores make small operators wait for each other. Math
# libraries read this when they are loaded, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A loaded machine is no failure, and a test that failed must fail again.
settings.register_profile("isoflop", deadline=None, derandomize=True)
settings.load_profile("isoflop")


@pytest.fixture(scope="session", autouse=True)
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield
