"""Models and studies that the tests of this folder share, each made once a session."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from interpret.made_facts import trained_run
from interpret.made_models import run_study, write_texts
from isoflop.interpret.load import LoadedRun


@pytest.fixture(scope="session")
def _shared(shared_folder: Path) -> Path:
    folder = shared_folder / "interpret"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def facts_run(_shared: Path) -> LoadedRun:
    """A model of two layers that knows the facts planted in its corpus."""
    folder = _shared / "facts"
    folder.mkdir(exist_ok=True)
    return trained_run(folder)


@pytest.fixture(scope="session")
def study(_shared: Path) -> Path:
    """A finished study, whose weights were kept: a run of mlp, moe, peer and sgatlin each.

    Its data lie in ``study-data`` beside it.
    """
    folder = _shared / "study"
    done = _shared / "study.done"
    with pytest.MonkeyPatch.context() as patch, (_shared / "study.lock").open("w") as lock:
        patch.setenv("ISOFLOP_DATA_DIR", str(data_of(folder)))
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            run_study(folder, write_texts(_shared / "texts"))
            done.touch()
    return folder


def data_of(study: Path) -> Path:
    """Where the fixture ``study`` has its data."""
    return study.with_name("study-data")


@pytest.fixture
def study_data(study: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data of ``study``, made the default."""
    monkeypatch.setenv("ISOFLOP_DATA_DIR", str(data_of(study)))
    return data_of(study)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The trained model takes half a minute: what needs it belongs to `make test-slow`."""
    for item in items:
        if "facts_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
