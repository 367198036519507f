"""Runs that several processes train together, started, stopped and killed by the launcher."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from isoflop.data.windows import open_data
from isoflop.files import write_json_atomic
from isoflop.launch import ranks as launching
from isoflop.launch.execute import execute
from isoflop.launch.job import Job, JobResult
from isoflop.launch.local import begin, open_session
from isoflop.launch.process import ProcessIdentity
from isoflop.launch.ranks import run_ranks
from isoflop.launch.run_folder import LEASE_TIMEOUT_S, RunFolder, Watch
from isoflop.placement import Placement
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from made_data import MadeHeldout
from made_studies import micro

STUDY = micro(budgets=(12 * 10**8,), archs=("sgatlin",), sizes=(1,), seq_len=64, batch_size=16)
BOUND = 1e-5


def made_job(folder: Path, **placement: Any) -> Job:
    """The study's one run, not begun."""
    write_plan(make_plan(STUDY), folder)
    session = open_session(folder)
    (job,) = session.jobs
    begin(folder, session.plan, [job.run_id])
    return dataclasses.replace(job, placement=Placement(**placement))


def attempts(job: Job) -> list[dict[str, Any]]:
    paths = sorted(Path(job.study_folder).glob("runs/*/attempts/*.json"))
    return [json.loads(path.read_text()) for path in paths]


def leave_to_be_watched(job: Job) -> Watch:
    """A holder that cannot be seen and that was watched for long enough."""
    folder = RunFolder(Path(job.study_folder), job.run_id)
    assert folder.claim({}) is not None
    path = folder.path / "attempts" / "0001.json"
    record = json.loads(path.read_text())
    write_json_atomic(path, record | {"holder": record["holder"] | {"boot_id": "before"}})
    watch = folder.watch()
    assert watch is not None
    return dataclasses.replace(watch, since_s=watch.since_s - LEASE_TIMEOUT_S)


class FewHeldout:
    """The data of a job with a small part of its held-out windows, since evaluating takes longer
    than training here."""

    def __init__(self, job: Job) -> None:
        self._data = open_data(Path(job.data_folder))
        self.identity = self._data.identity
        self.train_windows = self._data.train_windows

    def heldout(self, seq_len: int) -> MadeHeldout:
        windows = self._data.heldout(seq_len)
        documents = windows.document_index[:32].tolist()
        return MadeHeldout(windows.tokens[:32], documents, num_bytes=32 * seq_len)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def signal_only_rank_1(messages: list[Mapping[str, Any]], stop: str, signalled: set[int]) -> None:
    for message in messages:
        if message["rank"] == 1 and "pid" in message and message["pid"] not in signalled:
            signalled.add(message["pid"])
            os.kill(message["pid"], signal.Signals[stop])


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_one_rank_is_stopped_and_one_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_signal_ranks", signal_only_rank_1)
    job = made_job(tmp_path / "stopped", parallel="channel")
    seen: list[int] = []

    def on_step(step: int, steps: int, loss: float) -> None:
        seen.append(step)

    ending = run_ranks(job, 2, on_step=on_step, should_stop=lambda: "SIGUSR2" if seen else None)
    assert ending == JobResult(status="interrupted", reason="another rank was asked to stop")
    (first,) = attempts(job)
    assert first["exit_reason"] == "interrupted: another rank was asked to stop"
    # The main rank saved what both had completed.
    last = first["step_range"][1]
    (saved,) = Path(job.study_folder).glob("runs/*/ckpt/*/state.json")
    assert int(saved.parent.name) == last + 1

    alone = dataclasses.replace(job, placement=Placement())
    data = FewHeldout(job)
    done = execute(alone, data)
    assert done.status == "done"
    assert attempts(job)[1]["step_range"][0] == last + 1
    undisturbed = execute(made_job(tmp_path / "undisturbed"), data)
    assert done.loss == pytest.approx(undisturbed.loss, abs=BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp", "channel"])
@pytest.mark.usefixtures("one_thread")
def test_two_ranks_write_the_result_of_one(tmp_path: Path, parallel: str) -> None:
    job = made_job(tmp_path / "two", parallel=parallel)
    watch = leave_to_be_watched(job)
    ending = run_ranks(job, 2, on_step=lambda *_: None, should_stop=lambda: None, watch=watch)
    assert ending.status == "done"
    alone = execute(made_job(tmp_path / "one"), open_data(Path(job.data_folder)))
    assert ending.loss == pytest.approx(alone.loss, abs=BOUND)
    _, attempt = attempts(job)
    assert attempt["exit_reason"] == "done"


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_run_down(tmp_path: Path) -> None:
    job = made_job(tmp_path, parallel="ddp", checkpoint_every_steps=1)
    killed_s: list[float] = []

    def kill_rank_1(step: int, steps: int, loss: float) -> None:
        if not killed_s:
            os.kill(rank_pids(os.getpid())["1"], signal.SIGKILL)
            killed_s.append(time.monotonic())

    ending = run_ranks(job, 2, on_step=kill_rank_1, should_stop=lambda: None)
    assert time.monotonic() - killed_s[0] < launching.END_GRACE_S
    assert ending.status == "failed"
    assert ending.reason is not None
    assert ending.reason.startswith("rank 1: died (exit code -9); rank 0: ")
    (attempt,) = attempts(job)
    assert attempt["exit_reason"].startswith("failed: ")


def rank_pids(ancestor: int) -> dict[str, int]:
    """Processes with a RANK among the descendants of a process."""
    found = {}
    for pid in descendants(ancestor):
        # A process that an earlier test left may have ended and not been waited for.
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ranks = [v.removeprefix(b"RANK=") for v in environ if v.startswith(b"RANK=")]
            found.update({rank.decode(): pid for rank in ranks})
    return found


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [d for child in map(int, children) for d in (child, *descendants(child))]


LAUNCH = """
import sys
from pathlib import Path
from isoflop.files import read_json
from isoflop.launch.job import Job
from isoflop.launch.ranks import run_ranks

job = Job.from_json(read_json(Path(sys.argv[1]), "job"))
run_ranks(job, 2, on_step=lambda *_: print("step", flush=True), should_stop=lambda: None)
"""


@pytest.mark.slow
def test_no_rank_outlives_its_launcher(tmp_path: Path) -> None:
    job = made_job(tmp_path, parallel="fsdp")
    (tmp_path / "job.json").write_text(json.dumps(job.to_json()))
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(tmp_path / "job.json")], stdout=subprocess.PIPE
    )
    assert launcher.stdout is not None
    with launcher.stdout:
        assert launcher.stdout.readline() == b"step\n"
        started = [ProcessIdentity.of(pid) for pid in descendants(launcher.pid)]
        # torchrun and two ranks.
        assert len(started) == 3
        launcher.kill()
        launcher.wait()
        deadline_s = time.monotonic() + 15.0
        while any(process.is_alive() for process in started):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("messages", "stderr", "reason"),
    [
        (
            [{"rank": 0, "result": {"status": "failed", "reason": "a"}}],
            "Root Cause (first observed failure):\n[0]:\n  rank      : 3 (local_rank: 1)\n"
            "  exitcode  : -11 (pid: 5)\n",
            "rank 3: died (exit code -11); rank 0: a",
        ),
        (
            [{"rank": r, "result": {"status": "failed", "reason": "no data"}} for r in (1, 0)],
            "",
            "no data",
        ),
        (
            [{"rank": 1, "result": {"status": "failed", "reason": "b"}}],
            "rank : 1\n exitcode : 1\n",
            "rank 1: b",
        ),
        ([{"rank": 0, "pid": 5}], " no module named torch\n", "code 1: no module named torch"),
    ],
)
def test_why_ranks_failed(messages: list[dict[str, Any]], stderr: str, reason: str) -> None:
    ending = launching._result(messages, 1, stderr)
    assert ending.status == "failed"
    assert ending.reason is not None
    assert ending.reason.endswith(reason)


def test_lines_of_libraries_are_no_messages() -> None:
    assert launching._message("warning: {}\n") == {}
    assert launching._message("17\n") == {}
    assert launching._message('{"rank": 0, "pid": 1}\n') == {"rank": 0, "pid": 1}
