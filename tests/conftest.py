"""Fixtures for all tests: prepared data go to a temporary folder, never to the user's cache."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Tests run side by side; more threads than cores make small operators wait for each other. Math
# libraries read this when they are loaded, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A loaded machine is no failure, and a test that failed must fail again.
settings.register_profile("isoflop", deadline=None, derandomize=True)
settings.load_profile("isoflop")


# What takes packages of the distribution is slow, so that `make test` needs none of them.
_SLOW_FIXTURES = {"browser", "slurm_cluster", "new_cluster"}


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    for item in items:
        if not _SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    yield
    if _is_slow_target(config) and hasattr(config, "workerinput"):
        import longest

        longest.sort(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return the scheduler of `make test-slow`; the others are xdist's own."""
    if not _is_slow_target(config):
        return None
    import longest

    return longest.Scheduling(config, log)


def _is_slow_target(config: pytest.Config) -> bool:
    return config.getoption("markexpr") == "slow"


@pytest.fixture(scope="session", autouse=True)
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Iterator[None]:
    """Close pyplot's figures, which warn where many are open."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; skips only where nobody could have installed one (`make system`)."""
    binary, driver_binary = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver_binary is None:
        if os.geteuid() == 0 and shutil.which("apt-get"):
            pytest.fail("chromium or chromedriver is missing; run `make system`")
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_binary))
    yield driver
    driver.quit()
