from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from isoflop.launch import process as module
from isoflop.launch.process import ProcessIdentity


def test_a_process_lives_until_it_ends_also_as_a_zombie() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = ProcessIdentity.of(child.pid)
    assert identity.is_alive() is True
    assert ProcessIdentity.from_json(json.loads(json.dumps(identity.to_json()))) == identity
    assert replace(identity, start_ticks=1).is_alive() is False
    assert replace(identity, host="renamed").is_alive() is True
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity.is_alive() is False
    child.wait()
    assert identity.is_alive() is False


@pytest.mark.parametrize(
    "change", [{"boot_id": "other"}, {"pid_namespace": 7}, {"pid_namespace": None}]
)
def test_of_another_boot_or_namespace_nothing_is_known(change: dict[str, object]) -> None:
    assert replace(ProcessIdentity.of_this_process(), **change).is_alive() is None  # type: ignore[arg-type]


def test_a_record_of_0_1_0_is_read_and_not_trusted() -> None:
    values = ProcessIdentity.of_this_process().to_json()
    del values["pid_namespace"]
    assert ProcessIdentity.from_json(values).is_alive() is None


def test_a_process_that_is_hidden_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    # /proc mounted with hidepid=2, and a process of another user.
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    identity = replace(ProcessIdentity.of_this_process(), start_ticks=1)
    monkeypatch.setattr(module, "_start_ticks", lambda pid: None)
    assert identity.is_alive() is False
    monkeypatch.setattr(os, "kill", refuse)
    assert identity.is_alive() is None


SELF = "from isoflop.launch.process import ProcessIdentity as P; print(P.of_this_process())"


def in_namespace(*options: str) -> str:
    """What a process in a pid namespace of its own is by its own account."""
    command = ["unshare", "--pid", "--fork", *options, sys.executable, "-c", SELF]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unshare" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_namespace_has_a_number_of_its_own_or_none() -> None:
    if not Path("/proc/self/ns/pid").exists():
        pytest.skip("no namespaces here")
    own = ProcessIdentity.of_this_process().pid_namespace
    assert own is not None
    other = in_namespace("--mount-proc")
    assert "pid_namespace=" in other
    assert str(own) not in other
    # Its /proc is that of this namespace: the numbers there are not its own.
    assert "pid_namespace=None" in in_namespace()
