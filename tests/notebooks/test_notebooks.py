"""Every notebook runs from its first cell to its last, and shows what is committed with it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from notebooks.compare_outputs import difference, outputs_of

ROOT = Path(__file__).parents[2]
NAMES = ("flops", "frontiers", "interpret")
# Relative difference of numbers to the committed ones. Integers of FLOPs are exact, fits depend on
# the last bits of a solver; None: a model's floats differ from machine to machine.
TOLERANCES = {"flops": 1e-9, "frontiers": 0.02, "interpret": None}
LEAST_PICTURES = {"flops": 2, "frontiers": 6, "interpret": 2}
MAX_BYTES = 600_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/\w{2,}[\w./-]*")
NOT_COPIED = shutil.ignore_patterns(".launch", "attempts", "interpret", "plots")


def read(name: str) -> Any:
    import nbformat

    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def copy_study(notebook: Any, folder: Path) -> None:
    """The study that the notebook reads unless told otherwise, where it looks for it."""
    sources = "\n".join(cell.source for cell in code_cells(notebook))
    for study in re.findall(r'"\.\./results/([\w.-]+)"', sources):
        shutil.copytree(ROOT / "results" / study, folder / "results" / study, ignore=NOT_COPIED)


def prepare_data() -> None:
    """The text of the study whose models are looked into."""
    from isoflop.data.prepare import prepare
    from isoflop.data.sources import PrepareOptions

    prepare("synthetic:tiny:0", "byte", None, options=PrepareOptions())


def execute(notebook: Any, folder: Path) -> tuple[Any, bool]:
    """The notebook with new outputs, and whether it imported torch; raises if a cell fails."""
    import copy

    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell

    fresh = copy.deepcopy(notebook)
    fresh.cells.append(new_code_cell("import sys; 'torch' in sys.modules"))
    for cell in code_cells(fresh):
        cell.outputs = []
    NotebookClient(
        fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return fresh, outputs_of(fresh.cells.pop()) == [("text/plain", "True")]


def test_these_are_the_notebooks() -> None:
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_what_is_committed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ISOFLOP_STUDY", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(name)
    copy_study(notebook, tmp_path)
    if name == "interpret":
        prepare_data()
    (tmp_path / "notebooks").mkdir()
    fresh, imported_torch = execute(notebook, tmp_path / "notebooks")
    assert imported_torch == (name == "interpret")
    for old, new in zip(code_cells(notebook), code_cells(fresh), strict=True):
        before, after = outputs_of(old), outputs_of(new)
        assert [kind for kind, _ in before] == [kind for kind, _ in after], new.source
        tolerance = TOLERANCES[name]
        if tolerance is not None:
            for (_, was), (_, now) in zip(before, after, strict=True):
                assert difference(was, now, tolerance) is None, new.source
    # It writes nothing beside itself.
    assert list((tmp_path / "notebooks").iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_committed(name: str) -> None:
    cells = code_cells(read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [output for cell in cells for output in outputs_of(cell)]
    kinds = [kind for kind, _ in shown]
    assert "error" not in kinds
    assert [text for kind, text in shown if kind == "stderr"] == []
    assert kinds.count("image/png") >= LEAST_PICTURES[name]
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < MAX_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_names_no_folder_of_its_author(name: str) -> None:
    cells = read(name).cells
    texts = [cell.source for cell in cells]
    texts += [text for cell in cells for _, text in outputs_of(cell)]
    assert [path for text in texts for path in ABSOLUTE_PATH.findall(text)] == []


@pytest.mark.parametrize(
    ("before", "after", "tolerance", "differs"),
    [
        ("mlp | 1,234 | 0.5", "mlp | 1,234 | 0.5", 0.0, False),
        ("mlp | 1,234", "mlp | 1,235", 1e-9, True),
        ("mlp 1.00e-07", "mlp 1.01e-07", 0.02, False),
        ("mlp 1.00", "mlp 1.03", 0.02, True),
        ("mlp 1.00", "moe 1.00", 0.02, True),
        ("mlp 1.00", "mlp –", 0.02, True),
        ("1 2", "1 2 3", 0.02, True),
    ],
)
def test_differences_are_seen(before: str, after: str, tolerance: float, differs: bool) -> None:
    assert (difference(before, after, tolerance) is not None) == differs
