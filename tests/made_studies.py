"""Small studies for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import Attempt
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.planner import make_plan
from isoflop.plan.runs import PlannedRun
from isoflop.study import PAPER_ARCHS, Study

Edit = Callable[[dict[str, Any]], object]


def micro(**changes: object) -> Study:
    values: dict[str, object] = {
        "name": "micro",
        "budgets": (10**10,),
        "archs": PAPER_ARCHS,
        "sizes": (1, 2),
        "recipe": "micro-v1",
        "seq_len": 32,
        "batch_size": 4,
    }
    return Study(**(values | changes))  # type: ignore[arg-type]


def set_value(*keys: Any, to: Any) -> Edit:
    """An edit of a plan.json: the entry under ``keys`` becomes ``to``."""

    def edit(values: dict[str, Any]) -> None:
        inner: Any = values
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    return edit


def check_edit_is_refused(study: Study, edit: Edit, named: str, folder: Path) -> None:
    """A study's plan whose plan.json was edited by hand is refused, naming what is wrong."""
    write_plan(make_plan(study), folder)
    path = folder / "plan.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=named):
        read_plan(folder)


def begun(folder: Path, planned: PlannedRun) -> tuple[RunFolder, Attempt]:
    """A run at work in this process, with two checkpoints."""
    run = RunFolder(folder, planned.run_id)
    run.write_spec(planned.spec)
    attempt = run.claim({})
    assert attempt is not None
    for step in (5, planned.spec.steps):
        path = run.checkpoints / str(step)
        path.mkdir(parents=True)
        for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
            (path / name).write_text("{}")
    return run, attempt
