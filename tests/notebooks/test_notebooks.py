"""Every notebook runs from its first cell to its last, on a small study trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interpret.made_facts import write_texts
from interpret.made_subjects import run_study

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sgatlin run on texts that state facts, its weights kept."""
    folder = tmp_path_factory.mktemp("notebooks")
    write_texts(folder / "facts.jsonl")
    run_study(
        folder / "study",
        f"files:{folder}/facts.jsonl",
        archs=("sgatlin",),
        budgets=(10**9,),
        seq_len=64,
        batch_size=8,
    )
    return folder / "study"


def read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, as_version=4)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("ISOFLOP_STUDY", str(study))
    notebook = read(path)
    # Raises at the first cell that fails.
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_no_folder_of_its_author(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not any(place in text for place in ("/home/", "/root", "/tmp/", "/work/"))
