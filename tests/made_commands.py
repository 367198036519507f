"""Runs by commands of a user's own: shell scripts of a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop.launch.job import Job, TrainerJob
from isoflop.launch.run_folder import RunFolder
from isoflop.placement import Placement
from isoflop.spec import TrainerSpec, run_id
from isoflop.study.trainer import ResultTable

N_PARAMS = 1000
FINISH = 'echo "{\\"loss\\": 2.5, \\"tokens\\": 64}" > $ISOFLOP_RESULT\n'
"""Shell that writes the result of the run of four steps."""


def made_spec(**others: Any) -> TrainerSpec:
    values = {
        "command": ("sh", "train.sh"),
        "env": {},
        "code": "0" * 64,
        "rung": {"depth": 2},
        "seq_len": 8,
        "batch_tokens": 16,
        "steps": 4,
        "data": "made",
        "seed": 7,
    }
    return TrainerSpec(**{**values, **others})


def made_job(
    folder: Path,
    script: str = FINISH,
    *,
    resume: Any = "restart",
    result: Mapping[str, Any] | None = None,
    spec: TrainerSpec | None = None,
    keep_weights: str = "all",
    placement: Placement | None = None,
) -> tuple[Job, RunFolder]:
    """A run of which the shell ``script`` is the trainer, ready to be executed."""
    spec = spec or made_spec()
    code = folder / "code"
    code.mkdir(exist_ok=True, parents=True)
    (code / "train.sh").write_text(script)
    run_folder = RunFolder(folder / "study", run_id(spec))
    run_folder.write_spec(spec)
    job = Job(
        study_folder=str(folder / "study"),
        run_id=run_id(spec),
        data_folder="",
        keep_weights=keep_weights,
        placement=placement or Placement(),
        trainer=TrainerJob(
            code_folder=str(code),
            source=str(code),
            resume=resume,
            result=ResultTable(**{"unit": "nats_per_token", **(result or {})}),
            n_params=N_PARAMS,
        ),
    )
    return job, run_folder
