"""Studies with a trainer of one's own, for tests: declared FLOPs, and commands of milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isoflop.plan.estimate import Calibration
from isoflop.plan.estimate.measured import MeasuredCommand, TimedRun, command_key
from isoflop.plan.planner import Plan
from isoflop.study import Study
from isoflop.study.file import study_from_toml

LADDER = (1, 2, 3)
FLOPS_PER_TOKEN = (1000, 4000, 9000)
BATCH_TOKENS = 64

SCRIPT = """\
import json, math, sys
depth, steps, seed, result = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
tokens = 64 * steps
n_params = 1000 * depth**2
loss = 1.5 + 40 / n_params**0.5 + 60 / tokens**0.5 + 1e-3 * seed - 0.02 * ("--gated" in sys.argv)
with open(result, "w") as file:
    json.dump({"loss": loss, "tokens": tokens, "n_params": n_params}, file)
"""


def own_values(folder: Path, **trainer: Any) -> dict[str, Any]:
    """The TOML of a study of two archs, three sizes and budgets; some of [trainer] changed."""
    return {
        "study": {
            "name": "own",
            "budgets": [1e7, 2e7, 4e7],
            "archs": ["plain", "gated"],
        },
        "trainer": {
            "command": ["{python}", "train.py", "{depth}", "{steps}", "{seed}", "{result}"],
            "code": str(folder),
            "batch_tokens": BATCH_TOKENS,
            "seq_len": 16,
            "data": "made up",
            "count": {
                "flops_per_token": list(FLOPS_PER_TOKEN),
                "n_params": [1000 * depth**2 for depth in LADDER],
            },
            "result": {"unit": "bits_per_byte"},
            "ladder": {"depth": list(LADDER)},
        }
        | trainer,
        "arch": [{"name": "gated", "args": ["--gated"]}],
    }


def own_study(folder: Path, *, script: str = SCRIPT, **trainer: Any) -> Study:
    """That study, with its code written into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(script)
    return study_from_toml(own_values(folder, **trainer))


def measured(plan: Plan, arch: str, size: int, **changes: Any) -> MeasuredCommand:
    """A step of 0.1 s times the rung's depth squared, and 5 s for the rest."""
    trainer = plan.study.trainer
    assert trainer is not None
    assert plan.code is not None
    table = plan.study.trainer_arch(arch)
    values: dict[str, Any] = {
        "arch": arch,
        "rung": trainer.rung_of(table, size),
        "command_key": command_key(trainer, table),
        "code": plan.code.digest,
        "step_flops": FLOPS_PER_TOKEN[size - 1] * BATCH_TOKENS,
        "num_ranks": 1,
        "step_s": 0.1 * size**2,
        "start_s": 5.0,
        "runs": (TimedRun(steps=1, wall_s=5.1),),
        "peak_mem_bytes": 10**9 * size**2,
    }
    return MeasuredCommand(**(values | changes))


def calibration(*commands: MeasuredCommand) -> Calibration:
    """Of these commands on a CPU."""
    return Calibration(
        kind="cpu",
        machine="a machine",
        torch=None,
        date="2026-01-02",
        num_threads=1,
        entries=(),
        commands=commands,
    )


BRANCHING: dict[str, Any] = {
    "command": [
        *("{python}", "train.py", "{depth}", "{steps}", "{seed}", "{checkpoint_dir}"),
        "{decay_start}",
    ],
    "resume": "native",
    "warmup_steps": 4,
    "decay": 0.2,
    "branch": {"resume": "native"},
}
"""Entries of [trainer] with which runs of that study share trunks."""

BRANCHING_SCRIPT = """\
import json, math, os, sys
from isoflop import trainer

depth, steps, seed, out, decay_start = sys.argv[1:6]
depth, steps, seed, decay_start = int(depth), int(steps), int(seed), int(decay_start)
state = {"step": 0, "x": 3.0}
if os.path.exists(os.path.join(out, "state.json")):
    with open(os.path.join(out, "state.json")) as file:
        state = json.load(file)

def save(folder):
    with open(os.path.join(folder, "new.json"), "w") as file:
        json.dump(state, file)
    os.replace(os.path.join(folder, "new.json"), os.path.join(folder, "state.json"))

def leave(step):
    with trainer.branch(step) as folder:
        if folder:
            save(folder)

executed = open(os.path.join(os.path.dirname(os.environ["ISOFLOP_RESULT"]), "executed"), "a")
while state["step"] < steps:
    step = state["step"]
    leave(step)
    rate = 0.1 * min(1, (step + 1) / 4, (steps - step) / max(1, steps - decay_start))
    slope = state["x"] - 1 / depth + math.sin(12.9898 * step + seed + ("--gated" in sys.argv))
    state = {"step": step + 1, "x": state["x"] - rate * slope}
    trainer.report(step=step + 1, loss=state["x"], lr=rate)
    print(step, file=executed, flush=True)
    if step % 10 == 9:
        save(out)
trainer.finish(loss=state["x"], tokens=64 * steps)
"""
"""Deterministic, with a warm-up of 4 steps and a decay from `decay_start` on."""
