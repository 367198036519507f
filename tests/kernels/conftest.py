"""Compiled kernels go to a folder of this test run, never to the user's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # workers share what one of them has compiled
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_KERNELS_CACHE", str(folder / "kernels"))
        yield
