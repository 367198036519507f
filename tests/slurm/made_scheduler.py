"""A scheduler that says what it is told to, and a study that was sent to it; nothing is trained."""

from __future__ import annotations

import functools
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from isoflop.cli import main
from isoflop.files import write_json_atomic
from isoflop.launch.collect import RunState
from isoflop.launch.process import ProcessIdentity
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm.records import (
    SentArray,
    Submission,
    array_folder,
    comment_of,
    not_requeued_file,
    read_submissions,
    write_submission,
)
from isoflop.launch.status import StudyStatus, study_status
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import Plan, make_plan
from made_studies import micro

DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
NO_ACCOUNTING = "AccountingStorageType   = accounting_storage/none"
ACCOUNTING = "AccountingStorageType   = accounting_storage/slurmdbd"

# Nothing else is on the PATH, so that no real scheduler is asked.
_COMMAND = """#!/bin/sh
echo "${0##*/} $*" >> "${0%/*}/calls"
[ -f "$0.err" ] && /bin/cat "$0.err" >&2
[ -f "$0.out" ] && /bin/cat "$0.out"
[ -f "$0.code" ] && exit "$(/bin/cat "$0.code")"
exit 0
"""

_SBATCH = """#!/bin/bash
here="${0%/*}"
echo "sbatch $*" >> "$here/calls"
number=$(/bin/ls "$here" | /bin/grep -c '[.]sh$')
/bin/cp "$1" "$here/$number.sh"
[ -f "$here/refused-$number" ] && { /bin/cat "$here/refused-$number" >&2; exit 1; }
echo "Submitted batch job $((100 + number))"
"""


class Scheduler:
    """Commands on the PATH that print what was recorded of a real cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("squeue", "sacct", "scontrol", "scancel"):
            (folder / name).write_text(_COMMAND)
            (folder / name).chmod(0o755)
        self.says("scontrol", NO_ACCOUNTING)

    def says(self, command: str, out: str = "", *, error: str = "", code: int = 0) -> None:
        for suffix, text in (("out", out), ("err", error), ("code", str(code))):
            (self.folder / f"{command}.{suffix}").write_text(text + "\n" * bool(text))

    def queue(self, *lines: str) -> None:
        self.says("squeue", "\n".join(lines))

    def takes_jobs(self) -> None:
        """From now on there is an sbatch, which numbers its jobs from 100."""
        for name, text in (("sbatch", _SBATCH), ("srun", "#!/bin/sh\n")):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)

    def refuses(self, number: int, words: str) -> None:
        """Let sbatch refuse the job that would get this number from 0."""
        (self.folder / f"refused-{number}").write_text(words)

    @property
    def scripts(self) -> list[str]:
        """What sbatch was given."""
        numbers = itertools.takewhile(
            lambda path: path.exists(), map(self._script, itertools.count())
        )
        return [path.read_text() for path in numbers]

    def _script(self, number: int) -> Path:
        return self.folder / f"{number}.sh"

    def remove(self, command: str) -> None:
        (self.folder / command).unlink()

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    made = Scheduler(folder)
    monkeypatch.setenv("PATH", str(folder))
    # What has accounting is remembered by this.
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    return made


def line(
    job: str,
    state: str,
    *,
    restarts: int = 0,
    status: int = 0,
    node: str = "",
    reason: str = "None",
    comment: str | None = None,
) -> str:
    """A line of squeue, as version 22.05 prints it; job 12 is of the submission s1, 13 of s2."""
    comment = comment or comment_of("s2" if job.startswith("13") else "s1", 0)
    return f"{job}|{state}|{restarts}|{status}|{node}|{reason}|{comment}|"


def accounted(
    job: str,
    state: str,
    exit_code: str = "0:0",
    node: str = "n2",
    *,
    user: str = "ada",
    age_s: float = 900.0,
    name: str = "isoflop-micro",
    comment: str = comment_of("s1", 0),
) -> str:
    """A line of sacct."""
    submit_s = str(int(time.time() - age_s))
    return "\x1f".join((job, state, exit_code, node, user, submit_s, name, comment))


@functools.cache
def _plan() -> Plan:
    return make_plan(micro(archs=("mlp", "swiglu")))


_PROFILE = {"name": "tests", "hardware": "cpu2", "max_failures": 3, "throttle": 64}


class Sent:
    """A planned study, of four runs unless a plan is given, and what became of it."""

    def __init__(self, folder: Path, plan: Plan | None = None) -> None:
        self.folder = folder
        self.plan = plan or _plan()
        write_plan(self.plan, folder)
        self.ids = [run.run_id for run in self.plan.unique_runs]
        assert plan is not None or len(self.ids) == 4

    def submission(
        self,
        job_id: str | None = "12",
        *,
        tasks: list[list[int]] | None = None,
        name: str = "s1",
        rejected: str | None = None,
        age_s: float = 1000.0,
        cluster: str = "slurm",
        options: dict[str, Any] | None = None,
        process: ProcessIdentity | None = None,
        cluster_name: str | None = None,
        user: str | None = None,
        job_name: str | None = None,
        **profile: Any,
    ) -> None:
        shares = [[0], [1], [2], [3]] if tasks is None else tasks
        array = SentArray(
            job_id=job_id,
            tasks=tuple(tuple(self.ids[i] for i in share) for share in shares),
            rejected=rejected,
            is_array=len(shares) > 1,
            process=process,
        )
        write_submission(
            self.folder,
            Submission(
                submission_id=name,
                created_at=time.time() - age_s,
                profile={**_PROFILE, **profile},
                snapshot=None,
                cluster=cluster,  # type: ignore[arg-type]
                arrays=(array,),
                options=options or {},
                cluster_name=cluster_name,
                user=user,
                job_name=job_name,
            ),
        )

    def attempt(
        self,
        index: int,
        reason: str | None,
        *,
        job: str = "",
        age_s: float = 500.0,
        number: int = 1,
        node: str = "n2",
        restarts: int = 0,
        **details: Any,
    ) -> None:
        """An attempt's record; with reason None it did not end."""
        folder = self.run(index)
        base, _, task = job.partition("_")
        slurm = {"job_id": base, "node": node, "restart_count": str(restarts)}
        if task:
            # As SLURM has it: an element also has an id of its own.
            slurm |= {"job_id": "999", "array_job_id": base, "array_task_id": task}
        start_s = time.time() - age_s
        write_json_atomic(
            folder.path / "attempts" / f"{number:04d}.json",
            {
                "number": number,
                "holder": {"host": "elsewhere", "boot_id": "", "pid": 1, "start_ticks": None},
                "start_s": start_s,
                "end_s": None if reason is None else start_s + 1,
                "exit_reason": reason,
                "step_range": None,
                "wall_s": None,
                "details": ({"slurm": slurm} if job else {}) | details,
            },
        )

    def heartbeat(
        self,
        index: int,
        *,
        step: int,
        age_s: float = 1.0,
        number: int = 1,
        warnings: tuple[str, ...] = (),
    ) -> None:
        path, beat_s = self.run(index).path / "lease.json", time.time() - age_s
        write_json_atomic(
            path,
            {
                "attempt": number,
                "heartbeat_s": beat_s,
                "step": step,
                "steps": self.plan.unique_runs[index].spec.steps,
                "warnings": list(warnings),
            },
        )
        os.utime(path, (beat_s, beat_s))

    def result(self, index: int, status: str = "done") -> None:
        spec = self.plan.unique_runs[index].spec
        self.run(index).write_spec(spec)
        write_json_atomic(
            self.run(index).path / "result.json",
            {
                "schema_version": 1,
                "run_id": self.ids[index],
                "attempt": 1,
                "status": status,
                "num_steps": spec.steps,
                "status_reason": None if status == "done" else "loss is not finite",
                "loss": 1.5,
            },
        )

    def metrics(self, index: int, rows: list[dict[str, Any]]) -> None:
        path = self.run(index).path / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def log(self, job: str, text: str, *, name: str = "s1", suffix: str = "err") -> Path:
        folder = array_folder(self.folder, name, 0)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{job}_0_log.{suffix}"
        path.write_text(text)
        return path

    def not_requeued(self, job: str, message: str, *, age_s: float, num_tries: int = 3) -> None:
        write_json_atomic(
            not_requeued_file(self.folder, "s1", job),
            {"at_s": time.time() - age_s, "num_tries": num_tries, "message": message},
        )

    def run(self, index: int) -> RunFolder:
        return RunFolder(self.folder, self.ids[index])

    def line(self, job: str, state: str, **more: Any) -> str:
        """A line of squeue about a job that was sent, with the comment that it was sent with."""
        base = job.partition("_")[0]
        (comment,) = [
            comment_of(submission.submission_id, number)
            for submission in read_submissions(self.folder)
            for number, array in enumerate(submission.arrays)
            if array.job_id == base
        ]
        return line(job, state, comment=comment, **more)

    def comment(self, name: str = "s1") -> str:
        return comment_of(name, 0)

    def status(self) -> StudyStatus:
        return study_status(self.folder, self.plan)

    def state(self, index: int = 0) -> RunState:
        by_id = {state.run.run_id: state for state in self.status().states}
        return by_id[self.ids[index]]


def typed(sent: Sent, *arguments: str, **profile: Any) -> Result:
    """`isoflop submit` of a study to a profile with these keys."""
    path = sent.folder.parent / "mine.toml"
    values = {"name": "mine", "hardware": "cpu2", **profile}
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    options = ("--cluster", str(path), "--yes", *arguments)
    return CliRunner().invoke(main, ["submit", str(sent.folder), *options])
