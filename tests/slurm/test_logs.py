"""`isoflop logs`: what attempts and jobs wrote, found and followed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isoflop.cli.logs import logs
from isoflop.errors import UserError
from isoflop.launch.slurm.logs import follow, tail
from slurm.made_scheduler import Sent


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(logs, [str(a) for a in arguments])


def test_the_newest_attempt_is_shown_with_the_output_of_its_own_job(sent: Sent) -> None:
    sent.submission("12")
    sent.submission("13", name="s2")
    sent.attempt(0, "failed: ValueError: x", job="12_0", restarts=2)
    sent.attempt(0, "interrupted: SIGTERM", job="13_0", number=2, node="n4")
    (sent.run(0).path / "error-0001.txt").write_text("Traceback: x\n")
    sent.log("12_0", "of the first\n")
    sent.log("13_0", "of the second\n", name="s2", suffix="out")
    sent.log("13_00", "of another\n", name="s2")
    newest = invoke(sent.folder, sent.ids[0][:8]).output
    assert "   attempt 1: " in newest
    assert "job 12_0 on n2, start 3; failed: ValueError: x" in newest
    assert "=> attempt 2: " in newest
    assert "job 13_0 on n4; interrupted: SIGTERM" in newest
    assert "of the second" in newest
    assert not any(text in newest for text in ("of the first", "Traceback", "of another"))
    first = invoke(sent.folder, sent.ids[0][:8], "--attempt", 1).output
    assert "=> attempt 1: " in first
    assert "Traceback: x" in first
    assert "of the first" in first
    assert "of the second" not in first


def test_a_run_s_own_folder_names_it(sent: Sent) -> None:
    sent.attempt(0, "failed: ValueError: x")
    assert "attempt 1" in invoke(sent.run(0).path).output
    refused = invoke(sent.folder)
    assert isinstance(refused.exception, UserError)
    assert "give its first digits" in str(refused.exception)


def test_a_job_that_died_before_its_run_began_has_output(sent: Sent) -> None:
    sent.submission("12", tasks=[[0]])
    sent.log("12", "ModuleNotFoundError: no isoflop\n")
    assert "ModuleNotFoundError" in invoke(sent.folder, sent.ids[0][:8]).output
    # So it is where the run has attempts of earlier jobs.
    sent.attempt(0, "failed: ValueError: x", job="11", age_s=2000)
    output = invoke(sent.folder, sent.ids[0][:8]).output
    assert "   attempt 1: " in output
    assert "=> job 12: sent " in output
    assert "ModuleNotFoundError" in output


def test_a_process_of_this_machine_is_found_by_its_time(sent: Sent) -> None:
    sent.submission("71", tasks=[[0]], cluster="local", age_s=900)
    sent.submission("72", tasks=[[0]], cluster="local", age_s=300, name="s2")
    sent.log("71", "of the first\n")
    sent.log("72", "of the second\n", name="s2")
    sent.attempt(0, "interrupted: SIGTERM", age_s=500)
    assert "of the first" in invoke(sent.folder, sent.ids[0][:8], "--attempt", 1).output
    assert "=> process 72: sent " in invoke(sent.folder, sent.ids[0][:8]).output
    sent.attempt(0, None, age_s=100, number=2)
    output = invoke(sent.folder, sent.ids[0][:8]).output
    assert "of the second" in output
    assert "of the first" not in output


def test_what_is_not_there_is_said(sent: Sent) -> None:
    never = invoke(sent.folder, sent.ids[0][:8])
    assert isinstance(never.exception, UserError)
    assert "attempts of the run = none" in str(never.exception)
    sent.attempt(0, "failed: x")
    sent.attempt(0, "failed: x", number=2)
    wrong = invoke(sent.folder, sent.ids[0][:8], "--attempt", 3)
    assert "must be one of 1, 2" in str(wrong.exception)


def test_following_shows_what_comes_and_ends_with_the_run(tmp_path: Path) -> None:
    path, late = tmp_path / "out", tmp_path / "late"
    path.write_text("old\n")
    over = threading.Event()

    def write() -> None:
        with path.open("a") as file:
            file.write("new\n")
        late.write_text("late\n")
        over.set()
        # After the end was seen, but before the files are read for the last time.

    writer = threading.Timer(0.1, write)
    writer.start()
    text = "".join(follow([path, late], over.is_set))
    writer.join()
    assert sorted(text.split()) == ["late", "new"]


def test_follow_ends_at_the_end_of_the_newest_attempt(sent: Sent) -> None:
    sent.attempt(0, None)
    sent.metrics(0, [])
    timer = threading.Timer(0.3, lambda: sent.attempt(0, "interrupted: SIGTERM"))
    timer.start()
    began = time.monotonic()
    assert invoke(sent.folder, sent.ids[0][:8], "--follow").exit_code == 0
    assert time.monotonic() - began < 5
    timer.join()


def test_the_tail_of_a_long_file_has_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"line %d\n" % i for i in range(1000)) + b"\xff unfinished")
    lines = tail(path, 50)
    assert lines[0] == "line 996"
    assert lines[-1] == "\ufffd unfinished"
    assert tail(tmp_path / "nowhere") == []
    assert tail(path, 10**6)[0] == "line 0"


def secret(path: Path) -> None:
    target = path.parents[3] / "secret"
    target.write_text("a secret")
    path.symlink_to(target)


@pytest.mark.parametrize("make", [os.mkfifo, secret, Path.mkdir])
@pytest.mark.timeout(30)
def test_only_a_file_of_the_run_is_shown_as_its_traceback(
    sent: Sent, make: Callable[[Path], None]
) -> None:
    sent.submission("12")
    sent.attempt(0, "failed: ValueError: x", job="12_0")
    sent.log("12_0", "of the job\n")
    make(sent.run(0).path / "error-0001.txt")
    shown = invoke(sent.folder, sent.ids[0][:8])
    assert shown.exit_code == 0
    assert "of the job" in shown.output
    assert tail(sent.run(0).path / "error-0001.txt") == []
    assert "secret" not in shown.output
    assert next(follow([sent.run(0).path / "error-0001.txt"], lambda: True), None) is None
