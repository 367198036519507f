"""Runs by a script of one's own that begin where a longer one passed: the same results for less."""

from __future__ import annotations

import copy
import dataclasses
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from isoflop.launch.command import branch as branching
from isoflop.launch.command.branch import BEGAN_FILE
from isoflop.launch.job import DONE, TO_BE_CONTINUED, Job, JobResult
from isoflop.launch.local import begin, open_session
from isoflop.launch.metrics import METRICS, newest_by_step
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import RunResult
from isoflop.launch.train_job import train_job
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from isoflop.plan.trunks import trunks_of
from isoflop.study.file import study_from_toml
from isoflop.tables import read_table
from made_kills import disturb_command, train
from made_trainer import BRANCHING, BRANCHING_SCRIPT, own_study, own_values


class Made:
    """A study of one trunk of three runs, each of which is trained in this process when asked."""

    def __init__(self, folder: Path, script: str = BRANCHING_SCRIPT, **study: Any) -> None:
        code = folder / "code"
        own_study(code, script=script)
        values = own_values(code, **BRANCHING)
        values["trainer"]["decay"] = study.pop("decay", 0.2)
        values["study"] |= {"archs": ["plain"], "sizes": [3], "budgets": [2e7, 4e7, 8e7], **study}
        values["arch"] = []
        self.plan = make_plan(study_from_toml(values))
        self.folder = folder / "study"
        write_plan(self.plan, self.folder)
        session = open_session(self.folder)
        begin(self.folder, self.plan, [job.run_id for job in session.jobs])
        jobs = {job.run_id: job for job in session.jobs}
        self.short, self.middle, self.long = (jobs[run.run_id] for run in self.plan.runs)

    def copy(self, folder: Path) -> Made:
        """The same in another folder, as it is now."""
        shutil.copytree(self.folder, folder / "study")
        other = copy.copy(self)
        other.folder = folder / "study"
        for name in ("short", "middle", "long"):
            job = dataclasses.replace(getattr(self, name), study_folder=str(other.folder))
            setattr(other, name, job)
        return other

    def of(self, job: Job) -> RunFolder:
        return RunFolder(self.folder, job.run_id)

    def train(self, *jobs: Job) -> JobResult:
        for job in jobs:
            ended = train_job(job)
        return ended

    def result(self, job: Job) -> RunResult:
        found = self.of(job).result()
        assert found is not None
        return found

    def forks(self, job: Job) -> list[str]:
        return sorted(path.name for path in self.of(job).forks.glob("*"))

    def executed(self, job: Job) -> list[int]:
        """Steps that the run's command executed, in all attempts."""
        files = sorted(self.of(job).path.glob("reported/*/executed"))
        return [int(line) for file in files for line in file.read_text().split()]

    def events(self, job: Job, kind: str) -> list[dict[str, Any]]:
        rows = self.of(job).metrics()
        return [
            {k: v for k, v in row.items() if k not in ("attempt", "event")}
            for row in rows
            if row.get("event") == kind
        ]


def fork_of(job: Job) -> int:
    assert job.trunk is not None
    return job.trunk.fork


def steps_of(job: Job) -> int:
    assert job.trunk is not None
    return job.trunk.steps


def curve(made: Made, job: Job) -> dict[int, tuple[float, float]]:
    rows = read_table(made.of(job).path / "metrics.parquet", METRICS)
    return {row["step"]: (row["loss"], row["lr"]) for row in rows}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The study without trunks, trained."""
    made = Made(tmp_path_factory.mktemp("alone"), share="none")
    assert made.long.trunk is None
    made.train(made.short, made.middle, made.long)
    return made


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The study with its longest run trained: to be copied."""
    made = Made(tmp_path_factory.mktemp("trunk"))
    made.train(made.long)
    return made


def same_losses(made: Made, alone: Made, *names: str) -> bool:
    """Whether some runs, or all, have the losses that they have alone."""
    pairs = [(getattr(made, n), getattr(alone, n)) for n in names or ("short", "middle", "long")]
    return [made.result(job).loss for job, _ in pairs] == [
        alone.result(other).loss for _, other in pairs
    ]


def test_results_are_those_of_runs_alone_and_steps_those_of_the_plan(
    tmp_path: Path, trunk: Made, alone: Made
) -> None:
    made = trunk.copy(tmp_path)
    assert made.forks(made.long) == sorted([str(fork_of(made.short)), str(fork_of(made.middle))])
    made.train(made.middle, made.short)
    assert same_losses(made, alone)
    (trunk,) = trunks_of(made.plan)
    saved = {run.run_id: fork for run, fork in trunk.branches}
    for job, other in ((made.short, alone.short), (made.middle, alone.middle)):
        fork = saved[job.run_id]
        assert made.executed(job) == list(range(fork, steps_of(job)))
        result = made.result(job)
        assert (result.trunk_steps, result.num_steps) == (fork, steps_of(job))
        assert result.wall_s is not None
        assert result.wall_s > result.trunk_wall_s > 0
        assert made.events(job, "begun") == [{"step": fork, "run_id": made.long.run_id}]
        found, whole = curve(made, job), curve(alone, other)
        assert found.items() <= whole.items()
        assert set(range(fork + 1, steps_of(job) + 1)) <= found.keys()
        assert {1, fork} <= found.keys() or fork - max(k for k in found if k <= fork) < 3
    assert made.executed(made.long) == list(range(steps_of(made.long)))
    assert made.result(made.long).trunk_steps == 0
    assert made.events(made.long, "fork_failed") == []


def test_a_branch_leaves_forks_for_shorter_ones_and_may_begin_at_any(
    tmp_path: Path, trunk: Made, alone: Made
) -> None:
    """The longest run is done, and what it left for the shortest was removed."""
    made = trunk.copy(tmp_path)
    early = made.of(made.long).forks / str(fork_of(made.middle))
    state = json.loads((early / "state.json").read_text())
    assert state["step"] == fork_of(made.middle)
    for path in made.of(made.long).forks.iterdir():
        branching.remove_fork(path)
    made.train(made.middle)
    assert made.result(made.middle).trunk_steps == 0
    assert made.forks(made.middle) == [str(fork_of(made.short))]
    made.train(made.short)
    assert made.result(made.short).trunk_steps == fork_of(made.short)
    assert same_losses(made, alone)


def test_what_nobody_needs_any_more_is_not_left(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.train(made.short, made.long)
    assert made.forks(made.long) == [str(fork_of(made.middle))]


def test_the_tip_is_left_where_trunks_are_kept(tmp_path: Path) -> None:
    made = Made(tmp_path, keep_trunks=True)
    made.train(made.short, made.middle, made.long)
    assert made.forks(made.long) == [str(fork_of(made.long))]
    assert made.result(made.long).trunk_steps == 0


def test_a_script_that_leaves_nothing_is_told_once_and_no_run_fails(
    tmp_path: Path, alone: Made
) -> None:
    script = BRANCHING_SCRIPT.replace("    leave(step)\n", "")
    # It ends in the middle, and is to be continued.
    script = script.replace(
        "        save(out)\n",
        "        save(out)\n"
        "        if step == 99 and os.environ['ISOFLOP_ATTEMPT'] == '1': trainer.stop()\n",
    )
    made = Made(tmp_path, script)
    made.train(made.long, made.middle, made.short)
    assert len(made.of(made.long).attempts()) == 2
    told = made.events(made.long, "fork_failed")
    assert [event["step"] for event in told] == [fork_of(made.short), fork_of(made.middle)]
    assert all("trainer.branch" in event["reason"] for event in told)
    assert [made.result(job).trunk_steps for job in (made.middle, made.short)] == [0, 0]
    assert same_losses(made, alone)


def test_a_kill_while_a_state_is_written_leaves_none_and_the_next_attempt_leaves_it(
    tmp_path: Path, alone: Made
) -> None:
    script = BRANCHING_SCRIPT.replace(
        "            save(folder)",
        "            (folder / 'half').write_text('h')\n"
        "            if os.environ['ISOFLOP_ATTEMPT'] == '1': os.kill(os.getpid(), 9)\n"
        "            os.unlink(folder / 'half')\n"
        "            save(folder)",
    )
    made = Made(tmp_path, script)
    assert made.train(made.long).status == "failed"
    assert all(name.startswith(".") for name in made.forks(made.long))
    assert len(made.forks(made.long)) == 1
    # Nobody is to begin at what is half there.
    assert branching.usable_forks(made.folder, made.short.trunk) == []
    made.train(made.long, made.middle, made.short)
    assert all(not name.startswith(".") for name in made.forks(made.long))
    assert [made.result(j).trunk_steps for j in (made.short, made.middle)] == [
        fork_of(made.short),
        fork_of(made.middle),
    ]
    assert same_losses(made, alone)


@pytest.mark.parametrize(
    ("instant", "is_gone"),
    [
        ("copying", False),
        ("before the rename", False),
        ("before the rename", True),
        ("after the rename", True),
    ],
)
def test_a_kill_while_a_state_is_taken_over(
    instant: str,
    is_gone: bool,
    tmp_path: Path,
    trunk: Made,
    alone: Made,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fork is there at the next attempt, or is not."""
    made = trunk.copy(tmp_path)

    class KilledError(BaseException):
        pass

    def kill(*args: object, **kwargs: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        # What a kill leaves is not removed.
        patch.setattr(branching.shutil, "rmtree", lambda *args, **kwargs: None)
        if instant == "copying":
            patch.setattr(branching.os, "utime", kill)
        elif instant == "before the rename":
            patch.setattr(Path, "rename", kill)
        else:
            fsync = branching.fsync_path
            is_run = made.of(made.short).path.__eq__
            patch.setattr(
                branching, "fsync_path", lambda path: kill() if is_run(path) else fsync(path)
            )
        with pytest.raises(KilledError):
            made.train(made.short)
    if is_gone:
        for path in made.of(made.long).forks.iterdir():
            branching.remove_fork(path)
    folder = made.of(made.short)
    folder.end_attempt(folder.attempts()[-1], "interrupted: killed")
    made.train(made.short)
    assert same_losses(made, alone, "short")
    has_it = instant == "after the rename" or not is_gone
    assert made.result(made.short).trunk_steps == (fork_of(made.short) if has_it else 0)
    assert (folder.path / BEGAN_FILE).exists() == has_it
    assert list(folder.path.glob(".*.tmp")) == []


def test_where_a_run_began_survives_its_attempts(tmp_path: Path, alone: Made) -> None:
    script = BRANCHING_SCRIPT.replace(
        "        save(out)\n", "        save(out)\n        if step in (19, 59): trainer.stop()\n"
    )
    made = Made(tmp_path, script)
    made.train(made.long, made.middle)
    assert [len(made.of(job).attempts()) for job in (made.long, made.middle)] == [3, 2]
    result = made.result(made.middle)
    assert result.trunk_steps == fork_of(made.middle)
    assert made.executed(made.middle) == list(range(fork_of(made.middle), steps_of(made.middle)))
    assert len(made.events(made.middle, "begun")) == 1
    # Of the attempts of the longer one, those until the fork.
    spent = [a.wall_s for a in made.of(made.long).attempts() if a.wall_s is not None]
    assert 0 < result.trunk_wall_s < sum(spent)
    assert result.loss == alone.result(alone.middle).loss


def test_a_damaged_state_is_the_commands_own_and_fails_it(
    tmp_path: Path, trunk: Made, alone: Made
) -> None:
    made = trunk.copy(tmp_path)
    fork = made.of(made.long).forks / str(fork_of(made.short))
    (fork / "state.json").write_text('{"step": 3')
    ended = made.train(made.short)
    assert ended.status == "failed"
    assert "JSONDecodeError" in (ended.reason or "")
    # As with any state of its own.
    branching.remove_fork(fork)
    branching.remove_fork(made.of(made.short).trainer)
    made.train(made.short)
    assert made.result(made.short).trunk_steps == 0
    assert same_losses(made, alone, "short")


def secret_beside(folder: Path) -> Path:
    secret = folder / "secret"
    secret.mkdir()
    (secret / "state.json").write_text('{"step": 0, "x": 1.0}')
    return secret


def test_a_fork_with_a_link_in_it_is_passed_over(tmp_path: Path, trunk: Made, alone: Made) -> None:
    made = trunk.copy(tmp_path)
    fork = made.of(made.long).forks / str(fork_of(made.middle))
    (fork / "deep").mkdir()
    (fork / "deep" / "x").symlink_to(secret_beside(tmp_path) / "state.json")
    made.train(made.middle)
    # The one before serves as well.
    assert made.result(made.middle).trunk_steps == fork_of(made.short)
    (told,) = made.events(made.middle, "fork_damaged")
    assert (told["step"], told["run_id"]) == (fork_of(made.middle), made.long.run_id)
    assert same_losses(made, alone, "middle")


def test_a_run_among_whose_forks_is_a_link_is_passed_over(
    tmp_path: Path, trunk: Made, alone: Made
) -> None:
    made = trunk.copy(tmp_path)
    fork = made.of(made.long).forks / str(fork_of(made.middle))
    branching.remove_fork(fork)
    fork.symlink_to(secret_beside(tmp_path))
    made.train(made.middle)
    assert made.result(made.middle).trunk_steps == 0
    assert same_losses(made, alone, "middle")


@pytest.mark.parametrize("kind", ["pipe", "no folder", "gone"])
def test_what_cannot_be_copied_is_no_state(kind: str, tmp_path: Path) -> None:
    fork = tmp_path / "5"
    if kind == "pipe":
        fork.mkdir()
        os.mkfifo(fork / "x")
    elif kind == "no folder":
        fork.touch()
    with pytest.raises(branching.UnusableForkError):
        branching._copy(fork, tmp_path / "copy", lambda: True)


def test_a_copy_is_the_state_to_the_byte_and_shares_nothing_with_it(tmp_path: Path) -> None:
    fork, copied = tmp_path / "5", tmp_path / "copy"
    (fork / "deep" / "empty").mkdir(parents=True)
    (fork / "deep" / "a").write_bytes(bytes(range(256)) * 10_000)
    os.utime(fork / "deep" / "a", (5, 7))
    branching._copy(fork, copied, lambda: True)
    found = copied / "deep" / "a"
    assert found.read_bytes() == (fork / "deep" / "a").read_bytes()
    assert (copied / "deep" / "empty").is_dir()
    assert (found.stat().st_mtime, found.stat().st_nlink) == (7, 1)
    # Told to stop, it does not go on.
    answers = iter([True, True, False])
    branching._copy(fork, tmp_path / "half", lambda: next(answers, False))
    assert not (tmp_path / "half" / "deep" / "a").exists()


def test_a_link_in_the_place_of_forks_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.of(made.long).forks.symlink_to(tmp_path)
    ended = made.train(made.short)
    assert ended.failed_by_mistake
    assert "a symbolic link" in (ended.reason or "")
    assert not made.executed(made.short)


def test_a_script_that_leaves_links_costs_the_forks_alone(tmp_path: Path, alone: Made) -> None:
    script = BRANCHING_SCRIPT.replace(
        "            save(folder)",
        "            save(folder)\n            os.symlink(folder, folder / 'latest')",
    )
    made = Made(tmp_path, script)
    made.train(made.long)
    assert made.forks(made.long) == []
    assert {told["step"] for told in made.events(made.long, "fork_failed")} == {
        fork_of(made.short),
        fork_of(made.middle),
    }
    made.train(made.short)
    assert same_losses(made, alone, "short", "long")


def test_a_run_that_another_process_has_is_left_alone(tmp_path: Path, trunk: Made) -> None:
    made = trunk.copy(tmp_path)
    folder = made.of(made.short)
    attempt = folder.claim({})
    assert attempt is not None
    assert made.train(made.short).status == "held"
    assert not folder.trainer.exists()
    folder.end_attempt(attempt, "interrupted: SIGTERM")
    assert made.train(made.short).status == "done"
    assert made.result(made.short).trunk_steps == fork_of(made.short)


DIVERGES = BRANCHING_SCRIPT.replace(
    "    print(step,",
    "    if step + 1 == AT:\n"
    "        if TOLD: trainer.report(step=step + 1, loss=math.nan)\n"
    "        trainer.diverged('it exploded')\n"
    "    print(step,",
)


@pytest.mark.parametrize(
    ("at", "is_told", "is_inherited"), [(20, True, True), (20, False, False), (30, True, False)]
)
def test_a_divergence_before_the_fork_is_inherited_where_its_step_is_known(
    at: int, is_told: bool, is_inherited: bool, tmp_path: Path
) -> None:
    script = DIVERGES.replace("AT", str(at)).replace("TOLD", str(is_told))
    made = Made(tmp_path, script)
    assert made.train(made.long).status == "diverged"
    # The shortest one decays before the third of these steps.
    assert fork_of(made.short) < 30 < steps_of(made.short)
    made.train(made.short)
    first, second = made.result(made.long), made.result(made.short)
    outcome = ("status", "status_reason", "loss", "num_steps")
    assert [getattr(second, name) for name in outcome] == [getattr(first, name) for name in outcome]
    log = made.of(made.short).command_log(1)
    assert log.exists() != is_inherited
    if is_inherited:
        assert (second.trunk_steps, made.executed(made.short)) == (at, [])
        rows = newest_by_step(made.of(made.short).metrics())
        assert rows.keys() == newest_by_step(made.of(made.long).metrics()).keys()
        assert rows[at]["loss"] is None


def test_what_the_command_is_told_of_branches(tmp_path: Path) -> None:
    script = BRANCHING_SCRIPT.replace(
        "executed = open",
        "open(os.path.join(out, 'told'), 'w').write(json.dumps([sys.argv[6:], trainer.spec()"
        "['decay_start'], os.environ.get('ISOFLOP_BRANCH_STEPS'), "
        "os.environ.get('ISOFLOP_BRANCH_DIR')]))\nexecuted = open",
    )
    made = Made(tmp_path, script)
    made.train(made.long, made.short)
    forks = [fork_of(made.short), fork_of(made.middle)]
    for job, steps in ((made.long, ",".join(map(str, forks))), (made.short, "")):
        told = json.loads((made.of(job).trainer / "told").read_text())
        assert told == [[], fork_of(job), steps, str(made.of(job).forks)]


@pytest.mark.slow
def test_kills_at_random_change_nothing(tmp_path: Path) -> None:
    """Of the wrapper, its guard and the command; at the end two wrappers want the same run."""
    script = BRANCHING_SCRIPT.replace("    leave(step)\n", "    leave(step); time.sleep(0.02)\n")
    script = script.replace("import json", "import time, json")
    budgets = [4e7, 8e7, 16e7]
    alone = Made(tmp_path / "alone", share="none", budgets=budgets, decay=0.5)
    made = Made(tmp_path / "shared", script, budgets=budgets, decay=0.5)
    alone.train(alone.short, alone.middle, alone.long)
    disturb_command(made.long, 6, seed=3)
    disturb_command(made.middle, 3, seed=4)
    assert [len(made.of(job).attempts()) for job in (made.long, made.middle)] == [7, 4]
    context = multiprocessing.get_context("forkserver")
    both = [context.Process(target=train, args=(made.short.to_json(),)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert {process.exitcode for process in both} <= {DONE, TO_BE_CONTINUED}
    assert same_losses(made, alone)
    assert made.executed(made.short) == list(range(fork_of(made.short), steps_of(made.short)))
    assert made.result(made.middle).trunk_steps == fork_of(made.middle)
    assert min(made.executed(made.middle)) == fork_of(made.middle)
