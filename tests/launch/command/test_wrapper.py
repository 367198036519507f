"""Runs by shell scripts, through their folders: what they are given, and how each end is told."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop.launch import attempt as attempting
from isoflop.launch.command import process as running
from isoflop.launch.command.environment import Surroundings
from isoflop.launch.command.wrapper import ASKS_FOR_MORE, execute_command
from isoflop.launch.job import JobResult
from isoflop.launch.run_folder import RunFolder
from isoflop.placement import Placement
from made_commands import FINISH, made_job, made_spec


def record(folder: RunFolder, number: int) -> dict[str, Any]:
    return json.loads((folder.path / "attempts" / f"{number:04d}.json").read_text())


def once_there(path: Path) -> Callable[[], str | None]:
    """Stops a run as soon as its command has made a file."""
    return lambda: "SIGUSR2" if path.exists() else None


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_is_told_what_it_trains_and_its_result_is_kept(tmp_path: Path) -> None:
    spec = made_spec(
        command=("sh", "train.sh", "--ranks={ranks}", "{checkpoint_dir}", "{{x}}", "{python}"),
        env={"WANDB_DIR": "{checkpoint_dir}/w", "OMP_NUM_THREADS": "3"},
    )
    script = """env > $ISOFLOP_CHECKPOINT_DIR/env; cat > $ISOFLOP_CHECKPOINT_DIR/stdin
    pwd > $ISOFLOP_CHECKPOINT_DIR/pwd; printf '%s\\n' "$@"; echo oops >&2
    echo '{"loss": 1.5, "tokens": 64, "n_params": 1000, "loss_se": 0.25, "peak_mem_bytes": 9,
    "metrics": {"acc": 0.5}}' > $ISOFLOP_RESULT"""
    job, folder = made_job(tmp_path, script, spec=spec)
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ISOFLOP_")},
        "PYTHONPATH": f"{tmp_path}/study/.launch/code/0123456789abcdef:/mine",
        "PYTHONSAFEPATH": "1",
        "RANK": "3",
        "MINE": "yes",
    }
    ending = execute_command(job, surroundings=Surroundings(environ=environ, devices=["2", "5"]))
    assert (ending.status, ending.loss) == ("done", 1.5)
    result = folder.result()
    assert result is not None
    assert (result.loss, result.loss_se, result.num_steps) == (1.5, 0.25, 4)
    assert (result.perplexity, result.bits_per_byte) == (math.exp(1.5), None)
    assert (result.peak_mem_bytes, result.metrics) == (9, {"acc": 0.5})
    assert result.wall_s == record(folder, 1)["wall_s"] > 0
    assert result.tokens_per_s is not None
    assert (record(folder, 1)["exit_reason"], folder.reported(1).name) == ("done", "0001")
    there = folder.trainer
    lines = folder.command_log(1).read_text().splitlines()
    assert lines == ["--ranks=1", str(there), "{x}", sys.executable, "oops"]
    assert (there / "stdin").read_text() == ""
    assert (there / "pwd").read_text().strip() == str(tmp_path / "code")
    env = dict(line.partition("=")[::2] for line in (there / "env").read_text().splitlines())
    told = {name: value for name, value in env.items() if name.startswith("ISOFLOP_")}
    assert told == {
        "ISOFLOP_SPEC": str(folder.path / "spec.json"),
        "ISOFLOP_RUN_ID": job.run_id,
        "ISOFLOP_SEED": "7",
        "ISOFLOP_STEPS": "4",
        "ISOFLOP_TOKENS": "64",
        "ISOFLOP_CHECKPOINT_DIR": str(there),
        "ISOFLOP_RESULT": str(folder.reported(1) / "result.json"),
        "ISOFLOP_ATTEMPT": "1",
    }
    assert env["WANDB_DIR"] == f"{there}/w"
    assert (env["OMP_NUM_THREADS"], env["CUDA_VISIBLE_DEVICES"]) == ("3", "2,5")
    assert (env["PYTHONPATH"], env["MINE"]) == ("/mine", "yes")
    assert not {"PYTHONSAFEPATH", "RANK"} & env.keys()


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        (
            "echo ValueError: no; seq 5; printf 'a\\033[2J'; exit 3",
            "failed",
            "exit code 3; its log ends: ValueError: no | … | 5 | a\\x1b[2J",
        ),
        ("kill -SEGV $$", "failed", "killed by SIGSEGV; it printed nothing"),
        ("exit 77", "diverged", "code 77"),
        (
            'printf \'{"status": "diverged", "reason": "at \\\\u001b[2J 3"}\' > $ISOFLOP_RESULT\n'
            "exit 1",
            "diverged",
            "at \\x1b[2J 3",
        ),
        ('echo "{\\"loss\\": NaN, \\"tokens\\": 64}" > $ISOFLOP_RESULT', "diverged", "nan"),
        ("true", "failed", "UserError: result = "),
        ('echo "{\\"loss\\": 1}" > $ISOFLOP_RESULT', "failed", "UserError: tokens"),
        ('echo "{\\"loss\\": 1, \\"tokens\\": 63}" > $ISOFLOP_RESULT', "failed", "the plan's 64"),
        (
            'echo "{\\"loss\\": 1, \\"tokens\\": 64, \\"n_params\\": 2}" > $ISOFLOP_RESULT',
            "failed",
            "the 1000 counted",
        ),
        (f"{FINISH} exit 4", "failed", "exit code 4"),
        ("exit 75", "failed", 'resume = "restart" begins anew'),
    ],
)
def test_how_a_command_ends(script: str, status: str, words: str, tmp_path: Path) -> None:
    job, folder = made_job(tmp_path, script)
    ending = execute_command(job)
    assert ending.status == status
    assert words in (ending.reason or "")
    assert (ending.reason or "").isprintable()
    # It would fail again.
    assert ending.failed_by_mistake == ("must be" in (ending.reason or ""))
    result = folder.result()
    assert (result is not None) == (status == "diverged")
    if result is not None:
        assert (result.loss, result.num_steps) == (None, 0)


@pytest.mark.parametrize(
    ("command", "words"),
    [(("no-such-program",), "No such file"), (("./train.sh",), "Permission denied")],
)
def test_a_command_that_cannot_be_started(
    command: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    job, _ = made_job(tmp_path, spec=made_spec(command=command))
    ending = execute_command(job)
    assert words in (ending.reason or "")
    assert ending.failed_by_mistake
    (tmp_path / "code").rename(tmp_path / "away")
    ending = execute_command(job)
    assert "code folder" in (ending.reason or "")
    assert ending.failed_by_mistake


def test_one_that_asks_for_more_goes_on_as_long_as_it_comes_further(tmp_path: Path) -> None:
    script = f"""cd $ISOFLOP_CHECKPOINT_DIR
    [ -e more ] && rm more && {{ touch a; exit 75; }}
    [ -e a ] || {{ touch more; exit 75; }}
    [ $ISOFLOP_ATTEMPT = 3 ] && exit 75
    {FINISH}"""
    job, folder = made_job(tmp_path, script, resume="native")
    for _ in range(2):
        ending = execute_command(job)
        assert ending == JobResult(status="interrupted", reason=ASKS_FOR_MORE)
    ending = execute_command(job)
    assert ending.status == "failed"
    assert "came no step further" in (ending.reason or "")
    assert execute_command(job).status == "done"
    done = [folder.attempts()[n].exit_reason for n in (0, 3)]
    assert done == [f"interrupted: {ASKS_FOR_MORE}", "done"]


def test_a_stop_reaches_the_whole_group_and_the_next_attempt_ends_it(tmp_path: Path) -> None:
    # The child has the group's signal for itself; its parent shell dies of it at once.
    script = f"""cd $ISOFLOP_CHECKPOINT_DIR
    [ -e saved ] && {{ {FINISH} exit; }}
    (trap 'sleep 0.1; touch saved; exit' USR2; touch begun; while :; do sleep 0.01; done)"""
    job, folder = made_job(tmp_path, script, resume="native")
    ending = execute_command(job, should_stop=once_there(folder.trainer / "begun"))
    assert ending == JobResult(status="interrupted", reason="SIGUSR2")
    assert (folder.reported(1) / "stop").exists()
    assert (folder.trainer / "saved").exists()
    assert execute_command(job).status == "done"


RANK = """import os, time
from isoflop import trainer
folder = trainer.spec()["checkpoint_dir"]
trainer.should_stop()
open(f"{folder}/begun{os.environ['RANK']}", "w").close()
while not trainer.should_stop():
    time.sleep(0.05)
open(f"{folder}/saved{os.environ['RANK']}", "w").close()
trainer.stop()
"""


@pytest.mark.slow
def test_ranks_of_torchrun_save_in_sessions_of_their_own(tmp_path: Path) -> None:
    torchrun = ("{python}", "-m", "torch.distributed.run", "--standalone")
    spec = made_spec(command=(*torchrun, "--nproc-per-node={ranks}", "train.sh"))
    placement = Placement(parallel="ddp", num_ranks=2)
    job, folder = made_job(tmp_path, RANK, spec=spec, placement=placement)
    both = [folder.trainer / "begun0", folder.trainer / "begun1"]

    def should_stop() -> str | None:
        return "SIGUSR2" if all(path.exists() for path in both) else None

    ending = execute_command(job, should_stop=should_stop)
    assert ending == JobResult(status="interrupted", reason="SIGUSR2")
    assert {"saved0", "saved1"} <= {path.name for path in folder.trainer.iterdir()}


def test_what_does_not_stop_in_time_is_killed_wherever_it_is(tmp_path: Path) -> None:
    script = """cd $ISOFLOP_CHECKPOINT_DIR; trap '' USR2 TERM
    setsid sh -c 'trap "" USR2 TERM; echo $$ > other; touch begun; sleep 60; sleep 60' &
    sleep 60; sleep 60"""
    job, folder = made_job(tmp_path, script)
    surroundings = Surroundings(environ=os.environ, grace_s=lambda reason: 0.1)
    stop = once_there(folder.trainer / "begun")
    ending = execute_command(job, should_stop=stop, surroundings=surroundings)
    assert ending.status == "interrupted"
    assert not is_alive(int((folder.trainer / "other").read_text()))


def test_what_a_command_leaves_behind_does_not_outlive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LEFT_BEHIND_S", 0.1)
    script = f"""cd $ISOFLOP_CHECKPOINT_DIR
    setsid sh -c 'echo $$ > other; sleep 60; sleep 60' &
    until [ -s other ]; do sleep 0.01; done
    {FINISH}"""
    job, folder = made_job(tmp_path, script)
    assert execute_command(job).status == "done"
    assert not is_alive(int((folder.trainer / "other").read_text()))


def test_a_result_that_is_there_counts_although_it_was_told_to_stop(tmp_path: Path) -> None:
    script = f"""trap '{FINISH.strip()}; exit 0' USR2
    touch $ISOFLOP_CHECKPOINT_DIR/begun; while :; do sleep 0.01; done"""
    job, folder = made_job(tmp_path, script)
    ending = execute_command(job, should_stop=once_there(folder.trainer / "begun"))
    assert (ending.status, ending.loss) == ("done", 2.5)


@pytest.mark.parametrize(("step", "status"), [(2, "interrupted"), (4, "done")])
def test_stopped_with_code_0_it_is_done_only_if_it_shows_so(
    step: int, status: str, tmp_path: Path
) -> None:
    script = f"""cd $ISOFLOP_CHECKPOINT_DIR; trap 'exit 0' USR2
    [ $ISOFLOP_ATTEMPT = 2 ] && {{ echo "step 4 loss 1.0"; exit; }}
    echo "step {step} loss 2.0"; touch begun; while :; do sleep 0.01; done"""
    result = {"log": "{log}", "loss": r"step (?P<step>\d+) loss (?P<loss>\S+)"}
    job, folder = made_job(tmp_path, script, resume="native", result=result)
    ending = execute_command(job, should_stop=once_there(folder.trainer / "begun"))
    assert ending.status == status
    assert execute_command(job).loss == (2.0 if status == "done" else 1.0)


def test_told_to_stop_before_it_began_it_does_not_begin(tmp_path: Path) -> None:
    job, folder = made_job(tmp_path)
    ending = execute_command(job, should_stop=lambda: "SIGTERM")
    assert ending == JobResult(status="interrupted", reason="SIGTERM")
    assert not folder.trainer.exists()


def test_restarted_it_finds_nothing_and_no_link_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_text("kept")
    script = f"""cd $ISOFLOP_CHECKPOINT_DIR; [ -e begun ] && exit 5
    ln -s {outside} link; ln -s {outside}/data file; touch begun
    [ $ISOFLOP_ATTEMPT = 1 ] && exit 1
    {FINISH}"""
    job, folder = made_job(tmp_path, script, keep_weights="none")
    assert execute_command(job).reason == "exit code 1; it printed nothing"
    assert record(folder, 1)["wall_s"] > 0
    assert (folder.trainer / "link").is_symlink()
    assert execute_command(job).status == "done"
    assert not folder.trainer.exists()
    assert (outside / "data").read_text() == "kept"


def test_what_a_killed_guard_leaves_is_killed_too(tmp_path: Path) -> None:
    script = f"""cd $ISOFLOP_CHECKPOINT_DIR
    [ -e other ] && {{ {FINISH} exit; }}
    setsid sh -c 'echo $$ > other; sleep 60; sleep 60' &
    sleep 60; sleep 60"""
    job, folder = made_job(tmp_path, script, resume="native")
    other = folder.trainer / "other"

    def kill_guard() -> None:
        if other.exists() and other.read_text():
            children = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
            for pid in map(int, Path(children).read_text().split()):
                if b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    ending = execute_command(job, should_stop=kill_guard)
    assert ending.reason == "the command's guard was killed; it printed nothing"
    assert not is_alive(int(other.read_text()))
    assert execute_command(job).status == "done"


def test_processes_of_others_are_left_alone(tmp_path: Path) -> None:
    job, folder = made_job(tmp_path)
    later = {"ISOFLOP_RUN_ID": job.run_id, "ISOFLOP_RESULT": str(folder.reported(9) / "r")}
    elsewhere = {**later, "ISOFLOP_RESULT": str(tmp_path / "runs" / "reported" / "0001" / "r")}
    ours = {**later, "ISOFLOP_RESULT": str(folder.reported(0) / "r")}
    (tmp_path / "runs" / "reported" / "0001").mkdir(parents=True)
    folder.reported(9).mkdir(parents=True)
    folder.reported(0).mkdir(parents=True)
    others = [{**later, "ISOFLOP_RUN_ID": "0" * 64}, elsewhere, later, ours]
    begun = [
        subprocess.Popen(["sleep", "60"], env={**os.environ, **env}, start_new_session=True)
        for env in others
    ]
    try:
        assert execute_command(job).status == "done"
        assert [process.poll() for process in begun] == [None, None, None, -9]
    finally:
        for process in begun:
            process.kill()
            process.wait()


@pytest.mark.parametrize("how", ["moved", "superseded"])
def test_where_it_may_write_no_more_it_is_killed_at_once(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempting, "HEARTBEAT_S", 0.01)
    script = f"""trap '' USR2 TERM; cd {tmp_path}; echo $$ > pid; touch begun
    sleep 60; sleep 60"""
    job, folder = made_job(tmp_path, script)

    def disturb() -> None:
        if not (tmp_path / "begun").exists():
            return
        (tmp_path / "begun").unlink()
        if how == "moved":
            folder.path.rename(tmp_path / "away")
        else:
            text = (folder.path / "attempts" / "0001.json").read_text()
            (folder.path / "attempts" / "0002.json").write_text(text.replace(": 1,", ": 2,"))

    ending = execute_command(job, should_stop=disturb)
    assert ending.status == ("gone" if how == "moved" else "held")
    assert not is_alive(int((tmp_path / "pid").read_text()))
    assert folder.path.exists() == (how == "superseded")
    assert folder.result() is None


def test_a_curve_becomes_metrics_and_the_steps_of_the_heartbeat(tmp_path: Path) -> None:
    script = f"""cd $(dirname $ISOFLOP_RESULT)
    for step in 0 1 2 3; do
      echo "{{\\"step\\": $step, \\"loss\\": 3.$step, \\"lr\\": 0.5}}"
    done > curve.jsonl
    {FINISH}"""
    job, folder = made_job(tmp_path, script)
    told: list[Any] = []
    execute_command(job, on_step=lambda *step: told.append(step))
    rows = list(folder.metrics())
    assert [(row["step"], row["loss"], row["lr"]) for row in rows] == [
        (step, 3 + step / 10, 0.5) for step in range(4)
    ]
    assert all(row["attempt"] == 1 and row["wall_s"] >= 0 for row in rows)
    assert told[-1] == (4, 4, 3.3)
    assert record(folder, 1)["step_range"] == [0, 3]
    assert (folder.path / "metrics.parquet").exists()


def test_a_link_that_came_with_the_folder_is_not_written_through(tmp_path: Path) -> None:
    job, folder = made_job(tmp_path)
    folder.reported(1).mkdir(parents=True)
    (tmp_path / "mine").write_text("mine")
    (folder.reported(1) / "log.txt").symlink_to(tmp_path / "mine")
    assert "symbolic link" in (execute_command(job).reason or "")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_damaged_spec_or_that_of_another_kind_costs_the_run_only(tmp_path: Path) -> None:
    job, folder = made_job(tmp_path)
    (folder.path / "spec.json").write_text("{}")
    assert execute_command(job).failed_by_mistake
