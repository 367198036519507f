"""The lock of a study's submissions, without a scheduler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.errors import UserError
from isoflop.launch.slurm import records


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / ".launch" / records.LOCK_FILE
    lock.parent.mkdir()
    lock.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(UserError, match="submit lock.*no link.*remove it"),
        records.submit_lock(tmp_path),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_killed_submission_lets_go_of_the_lock(tmp_path: Path) -> None:
    text = """
import sys
from pathlib import Path
from isoflop.launch.slurm.records import submit_lock
with submit_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    with records.submit_lock(tmp_path):
        lock = tmp_path / ".launch" / records.LOCK_FILE
        assert lock.read_text() == f"process {os.getpid()} of {os.uname().nodename}\n"
