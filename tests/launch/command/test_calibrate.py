"""`isoflop calibrate` of commands of the user's own, well-behaved and not."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from isoflop.cli import main
from isoflop.launch.command import calibrate
from isoflop.launch.command.calibrate import (
    CommandCalibration,
    reported_step_s,
    rungs_of,
    step_and_start,
)
from isoflop.launch.command.memory import PeakMemory
from isoflop.launch.job import Job, JobResult
from isoflop.launch.run_folder import RunFolder
from isoflop.plan.artefact import write_plan
from isoflop.plan.estimate import Calibration, estimate_for, load_calibration
from isoflop.plan.estimate.measured import TimedRun
from isoflop.plan.planner import Plan, make_plan
from made_trainer import own_study

# What [trainer] has in these tests, beside what is tested.
# What is started in the background ignores SIGINT, and so do its children.
HEARS_INT = ("env", "--default-signal=INT")
FEW = {"ladder": {"depth": [1]}, "count": {"flops_per_token": [1000], "n_params": [1000]}}

WITHOUT_PARAMS = """\
import json, sys, time
depth, steps, result = int(sys.argv[1]), int(sys.argv[2]), sys.argv[4]
json.dump({"loss": 1.0, "tokens": 64 * steps}, open(result, "w"))
"""


def made(tmp_path: Path, script: str | None = None, **trainer: Any) -> tuple[Path, Plan]:
    changes = {} if script is None else {"script": script}
    plan = make_plan(own_study(tmp_path / "code", **changes, **trainer))
    folder = tmp_path / "study"
    write_plan(plan, folder)
    return folder, plan


def typed(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["calibrate", str(folder), *options])


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"plan.json", "plan.parquet", "code.json"}


@pytest.fixture
def one_arch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rungs_of
    monkeypatch.setattr(calibrate, "rungs_of", lambda *given: whole(*given)[:1])


def test_the_ends_of_each_arch_are_measured_unless_rungs_are_named(tmp_path: Path) -> None:
    _, plan = made(tmp_path)

    def places(*sizes: int) -> list[tuple[str, int, int]]:
        found = rungs_of(plan, sizes)
        return [(each.run.arch, each.run.size, each.most_steps) for each in found]

    ends = [("plain", 1, 625), ("plain", 3, 69), ("gated", 1, 625), ("gated", 3, 69)]
    assert places() == ends
    assert places(2) == [("plain", 2, 156), ("gated", 2, 156)]


@pytest.mark.parametrize(
    ("runs", "step_s", "start_s"),
    [
        ([(3, 5.3), (13, 6.3)], 0.1, 5.0),
        # The scatter of start-up is that of short runs, too.
        ([(3, 4.3), (3, 6.3), (13, 6.3)], 0.1, 5.0),
        ([(3, 5.3), (13, 5.1)], 0.0, 5.2),
        ([(1, 1.0), (2, 3.0)], 2.0, 0.0),
        ([(1, 4.0)], 0.0, 4.0),
    ],
)
def test_a_step_is_told_from_start_up(
    runs: list[tuple[int, float]], step_s: float, start_s: float
) -> None:
    timed = [TimedRun(steps=steps, wall_s=wall_s) for steps, wall_s in runs]
    assert step_and_start(timed) == pytest.approx((step_s, start_s))


def test_what_a_run_reports_of_its_steps_comes_first() -> None:
    runs = [
        TimedRun(steps=3, wall_s=9.3),
        TimedRun(steps=13, wall_s=6.3, step_s=0.2),
        TimedRun(steps=23, wall_s=3.3, step_s=0.1),
    ]
    assert step_and_start(runs) == pytest.approx((0.1, 5.0))


@pytest.mark.parametrize(
    ("rows", "steps", "step_s"),
    [
        # The first steps compile, and are left out.
        ([(0, 5), (1, 9), (2, 10), (3, 10.5), (4, 11), (5, 11.5), (6, 12)], 6, 0.5),
        ([(0, 5), (10, 6)], 13, 0.1),
        ([(0, 5), (4, 6)], 13, None),
        ([(7, 5)], 8, None),
        ([(0, 5), (9, 4)], 10, None),
        ([(0, 5), ("9", 6)], 10, None),
        ([(0, 5), (9, float("nan"))], 10, None),
        ([(9, 6), (0, 5), (9, 7.0)], 10, 2 / 9),
        ([], 3, None),
    ],
)
def test_reports_tell_a_step_if_they_span_half_of_them(
    tmp_path: Path, rows: list[tuple[Any, float]], steps: int, step_s: float | None
) -> None:
    curve = tmp_path / "curve.jsonl"
    curve.write_text("".join(json.dumps({"step": s, "time_s": t}) + "\n" for s, t in rows))
    assert reported_step_s(curve, steps) == (None if step_s is None else pytest.approx(step_s))
    assert reported_step_s(tmp_path / "none", steps) is None


@pytest.mark.usefixtures("one_arch")
def test_steps_start_up_and_memory_of_the_very_command(tmp_path: Path) -> None:
    script = (
        WITHOUT_PARAMS
        + """
import os
here, named = os.getcwd(), os.environ
assert "/.launch/code/trainer-" in here, here
assert named["ISOFLOP_STEPS"] == sys.argv[2] and named["LR"] == "1e-3"
assert json.load(open(named["ISOFLOP_SPEC"]))["steps"] == steps
with open(os.path.join(os.path.dirname(named["ISOFLOP_RESULT"]), "curve.jsonl"), "w") as curve:
    for step in range(steps):
        print(json.dumps({"step": step, "loss": 1.0, "time_s": 0.01 * step}), file=curve)
held = bytearray(100_000_000)
if os.fork() == 0:
    more = bytearray(100_000_000)
    time.sleep(0.2)
    os._exit(0)
os.wait()
"""
    )
    path = "{checkpoint_dir}/of-{steps}.json"
    folder, plan = made(
        tmp_path,
        script,
        command=["{python}", "train.py", "{depth}", "{steps}", "{seed}", path],
        result={"unit": "bits_per_byte", "json": path},
        env={"LR": "{depth}e-3"},
        **FEW,
    )
    result = typed(folder)
    assert result.exit_code == 0, result.output
    (found,) = load_calibration(folder).commands
    assert [run.steps for run in found.runs] == [3, 13]
    assert found.step_s == pytest.approx(0.01)
    # A loaded machine sleeps longer, never shorter.
    assert all(run.wall_s > 0.2 for run in found.runs)
    assert found.start_s > 0.1
    assert found.peak_mem_bytes is not None
    assert 2e8 < found.peak_mem_bytes < 4e8
    assert left_in(folder) == {"calibration.json", ".launch"}
    assert {path.name for path in (folder / ".launch").iterdir()} == {"code"}
    estimate = estimate_for(plan, folder)
    assert (estimate.hardware, estimate.num_of("calibrated"), estimate.num_of("flops")) == (
        "cpu2",
        3,
        3,
    )


def test_steps_too_short_to_tell_are_timed_over_more_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_s = 0.0

    def execute_command(job: Job, **_: object) -> JobResult:
        spec = RunFolder(Path(job.study_folder), job.run_id).read_spec()
        return JobResult(status="done", wall_s=10 + (step_s or -0.001) * spec.steps)

    monkeypatch.setattr(calibrate, "execute_command", execute_command)
    folder, plan = made(tmp_path)
    calibration = CommandCalibration(plan, folder, steps=3, timeout_s=9, device=None)
    for step_s, most_steps, steps in (
        (2.0, 625, [3, 6]),
        # As many more as make up 0.6 of the shortest run, 6 times as many at most.
        (0.1, 625, [3, 6, 21, 65]),
        (0.01, 625, [3, 6, 21, 111, 605]),
        # No more than are planned.
        (0.0, 625, [3, 6, 21, 111, 625]),
        (0.0, 50, [3, 6, 21, 50]),
        (0.0, 2, [1, 2]),
        (0.0, 1, [1]),
    ):
        rung = dataclasses.replace(rungs_of(plan)[0], most_steps=most_steps)
        found = calibration.measure(rung)
        assert [run.steps for run in found.runs] == steps
        assert found.step_s == pytest.approx(step_s if len(steps) > 1 else 0.0)
    assert left_in(folder) == {".launch"}


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("print('hello'); raise SystemExit(9)", (), "exit code 9; its log ends: hello"),
        ("print('no word of it')", (), "result.json"),
        (WITHOUT_PARAMS.replace("64 * steps", "7"), (), "tokens"),
        (
            "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nos.fork() or os.setsid()\n"
            "print('on it', flush=True)\ntime.sleep(60)",
            ("--timeout", "0.5"),
            "no end within 0.5 s; its log ends: on it",
        ),
    ],
)
@pytest.mark.usefixtures("one_arch")
def test_what_ends_without_a_result_is_one_line_and_nothing_is_written(
    tmp_path: Path,
    script: str,
    options: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibrate, "_GRACE_S", 0.1)
    folder, _ = made(tmp_path, script, **FEW)
    result = typed(folder, *options)
    assert result.exit_code == 1
    line, last = result.stderr.strip().splitlines()
    assert line.startswith("isoflop: run = 'plain size 1, 3 steps': must be one that ends with")
    assert words in line
    assert last.startswith("nothing was measured")
    assert left_in(folder) == {".launch"}


@pytest.mark.slow
def test_one_rung_that_fails_does_not_cost_the_others(tmp_path: Path) -> None:
    script = WITHOUT_PARAMS.replace("json.dump", "assert '--gated' not in sys.argv\njson.dump")
    folder, plan = made(tmp_path, script)
    result = typed(folder, "--steps", "4", "--rungs", "1")
    assert result.exit_code == 1
    assert [m.arch for m in load_calibration(folder).commands] == ["plain"]
    assert "without 1 that could not be measured" in result.stderr
    estimate = estimate_for(plan, folder)
    assert [estimate.num_of(kind) for kind in ("calibrated", "interpolated", "flops")] == [3, 6, 9]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    script = "import os, time\nos.fork()\nopen(f'{os.getpid()}', 'w')\ntime.sleep(60)"
    folder, _ = made(tmp_path, script, **FEW)
    process = subprocess.Popen(
        [*HEARS_INT, sys.executable, "-m", "isoflop", "calibrate", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def pids() -> list[int]:
        code = folder / ".launch" / "code"
        return [int(path.name) for path in code.glob("trainer-*/*") if path.name.isdecimal()]

    end_s = time.monotonic() + 30
    while len(pids()) < 2 and time.monotonic() < end_s:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(30) in (1, 128 + number)
    assert len(pids()) == 2
    for pid in pids():
        assert not Path(f"/proc/{pid}").exists()
    assert left_in(folder) == {".launch"}


def test_mistakes_are_named(tmp_path: Path) -> None:
    folder, _ = made(tmp_path)
    for option, named in (
        ("--steps=0", "--steps = 0"),
        ("--timeout=0", "--timeout = 0.0"),
        ("--rungs=1.5", "--rungs = 1.5"),
        ("--rungs=1,4", "--rungs = 4: must be planned rungs of the ladder (1, 2, 3)"),
    ):
        result = typed(folder, option)
        assert result.exit_code == 2
        assert named in result.stderr
    assert left_in(folder) == set()


def test_changed_code_is_not_measured_and_named(tmp_path: Path) -> None:
    folder, _ = made(tmp_path)
    (tmp_path / "code" / "model.py").write_text("new")
    result = typed(folder)
    assert result.exit_code == 2
    assert "new: model.py" in result.stderr
    assert left_in(folder) == set()


def test_memory_of_gpus_is_of_the_commands_processes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoflop.launch.command.memory._GPU_EVERY_S", 0.01)
    child = subprocess.Popen(
        [sys.executable, "-c", "import subprocess as s; s.run(['sleep', '60'])"],
        start_new_session=True,
    )
    try:
        while not (below := _children(child.pid)):
            time.sleep(0.01)
        told = [f"GPU-a, {below[0]}, 300", "GPU-a, 1, 9000", f"GPU-b, {below[0]}, 500"]
        told += [f"GPU-b, {below[0]}, [N/A]", "No running processes found"]
        program = tmp_path / "nvidia-smi"
        lines = "\n".join(told)
        program.write_text(f"#!/bin/sh\necho '{lines}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with PeakMemory(with_gpu=True) as memory:
            end_s = time.monotonic() + 10
            while memory.gpu_bytes is None and time.monotonic() < end_s:
                time.sleep(0.01)
        assert memory.gpu_bytes == 500 * 1024**2
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_files_of_built_in_shapes_have_no_new_key(tmp_path: Path) -> None:
    from isoflop.plan.estimate.hardware import write_calibration

    made_before = Calibration(
        kind="cpu", machine="a", torch="2.0", date="2026-01-02", num_threads=1, entries=()
    )
    write_calibration(tmp_path / "c.json", made_before)
    assert list(json.loads((tmp_path / "c.json").read_text()))[-1] == "entries"
    assert load_calibration(tmp_path / "c.json") == made_before
