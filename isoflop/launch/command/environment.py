"""What a run's own command inherits, and what isoflop tells it by variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.environ import OWN_SAFE_PATH
from isoflop.launch.command.process import RESULT, RUN_ID
from isoflop.launch.command.results import Places
from isoflop.launch.job import Job
from isoflop.launch.trainer_code import python_path
from isoflop.spec import TrainerSpec
from isoflop.study.trainer import placed

STOP_GRACE_S = 25.0
"""Seconds in which a command that was told to stop may save; less than workers have, and SLURM."""

# Which rank this process is, of others that the command has nothing to do with.
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")

# What isoflop tells only some commands.
_OF_SOME = ("ISOFLOP_DECAY_START", "ISOFLOP_BRANCH_STEPS", "ISOFLOP_BRANCH_DIR")

# torchrun passes these on to its ranks; USR2 would end it alone. It reads options from PET_*.
_TORCHRUN_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a process that executes commands gives them of its own."""

    environ: Mapping[str, str]
    """The environment that they inherit."""
    devices: Sequence[str] | None = None
    """GPUs, as CUDA_VISIBLE_DEVICES names them; None: those that are visible."""
    grace_s: Callable[[str], float] = lambda reason: STOP_GRACE_S
    """Seconds that a command has to end after a stop, by its reason."""
    python: str = sys.executable


def command_environment(
    surroundings: Surroundings,
    job: Job,
    spec: TrainerSpec,
    places: Places,
    attempt: int,
    run_folder: Path,
) -> dict[str, str]:
    """Return the whole environment of a command.

    Args:
        surroundings: what it inherits.
        job: how the run is executed.
        spec: what the run is.
        places: of the attempt.
        attempt: its number.
        run_folder: the run's folder.
    """
    assert job.trainer is not None
    env = {k: v for k, v in surroundings.environ.items() if k not in (*_RANKS, *_OF_SOME)}
    env = _without_own_code(env)
    source, code = Path(job.trainer.source), Path(job.trainer.code_folder)
    if paths := python_path(env.get("PYTHONPATH", ""), source, code):
        env["PYTHONPATH"] = paths
    env.setdefault("OMP_NUM_THREADS", str(job.placement.num_threads))
    env.setdefault("PET_SIGNALS_TO_HANDLE", _TORCHRUN_SIGNALS)
    env.setdefault("PET_SHUTDOWN_TIMEOUT", f"{surroundings.grace_s('SIGUSR2'):.0f}")
    if surroundings.devices is not None:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(surroundings.devices)
    env |= {name: placed(value, places.values) for name, value in spec.env.items()}
    if job.trainer.decay_start is not None:
        env["ISOFLOP_DECAY_START"] = str(job.trainer.decay_start)
    if job.trunk is not None:
        for name in ("branch_steps", "branch_dir"):
            env[f"ISOFLOP_{name.upper()}"] = places.values[name]
    return env | {
        "ISOFLOP_SPEC": str(run_folder / "spec.json"),
        RUN_ID: job.run_id,
        "ISOFLOP_SEED": str(spec.seed),
        "ISOFLOP_STEPS": str(spec.steps),
        "ISOFLOP_TOKENS": str(spec.n_tokens),
        "ISOFLOP_CHECKPOINT_DIR": places.values["checkpoint_dir"],
        RESULT: str(places.result),
        "ISOFLOP_ATTEMPT": str(attempt),
    }


def _without_own_code(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what verbs and a submission's tasks run their own code by.

    See isoflop.launch.slurm.snapshot. A script finds the modules beside it again, unless the user
    wanted it otherwise.
    """
    env = {k: v for k, v in env.items() if (k, v) != ("PYTHONSAFEPATH", OWN_SAFE_PATH)}
    paths = env.get("PYTHONPATH", "").split(os.pathsep)
    kept = [path for path in paths if Path(path).parts[-3:-1] != (".launch", "code")]
    if kept == paths:
        return env
    others = {k: v for k, v in env.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return others | ({"PYTHONPATH": os.pathsep.join(kept)} if kept else {})
