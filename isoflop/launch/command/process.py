"""A command as a child of this process that never outlives it; what an earlier one left behind.

Between this process and the command is a small guard (isoflop.launch.command.guard). Should both be
killed at once, the command's own process dies with the guard, where the system has that; whatever
of it is left is found by its environment before the next attempt begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from isoflop.errors import UserError

RUN_ID, RESULT = "ISOFLOP_RUN_ID", "ISOFLOP_RESULT"
"""Variables by which the processes of an attempt are known."""

_GUARD = Path(__file__).with_name("guard.py")
# A process that hangs in the kernel does not end by SIGKILL either.
KILL_S = 30.0
_LOOK_S = 0.02
# What a command leaves behind has so many seconds to end by itself, as Python's resource tracker
# does, which frees shared memory after its parents.
LEFT_BEHIND_S = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandEnd:
    """How a command ended."""

    code: int | None
    """Its exit code, negative for a signal; None: the guard was killed, and it with it."""


class Command:
    """A running command; leaving its context kills what is left of it.

    Args:
        command: program and arguments.
        env: its whole environment.
        cwd: the folder in which it starts.
        log: to which its standard output and error are appended.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path
    ) -> None:
        self._name = command[0]
        request = {
            "command": list(command),
            "env": dict(env),
            "cwd": str(cwd),
            "left_behind_s": LEFT_BEHIND_S,
        }
        self._socket, theirs = socket.socketpair()
        with theirs, log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", _GUARD, str(theirs.fileno())],
                # It is not to be known by these; its Python may need others to start.
                env={k: v for k, v in os.environ.items() if k not in (RUN_ID, RESULT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._told = b""
        text = json.dumps(request).encode()
        self._send(len(text).to_bytes(4, "big") + text)

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        try:
            self._guard.wait(KILL_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()

    def wait(self, timeout_s: float) -> CommandEnd | None:
        """Return how it ended, once nothing of it is left; None: not within the time.

        Raises:
            UserError: it could not be started.
        """
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return None
        with contextlib.suppress(ConnectionResetError):
            while part := self._socket.recv(4096):
                self._told += part
                if part.endswith(b"\n"):
                    return self._end(json.loads(self._told))
        return CommandEnd(code=None)

    def _end(self, told: Mapping[str, Any]) -> CommandEnd:
        if "error" in told:
            allowed = f"a program that can be started ({told['error']})"
            do = "correct the command of [trainer], or install the program"
            raise UserError("command", self._name, allowed, do)
        return CommandEnd(code=told["code"])

    def send_signal(self, number: int) -> None:
        """Send a signal to its process group; SIGKILL: to all of its descendants."""
        self._send(bytes([number]))

    def _send(self, data: bytes) -> None:
        # A guard that is gone is noticed by `wait`.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)


def kill_left_behind(run_id: str, reported: Path, attempt: int) -> None:
    """Kill the processes that attempts at a run left on this machine, and wait for their end.

    Args:
        run_id: the run's id, 64 hex digits.
        reported: the folder in which each attempt has its own; processes know them by RESULT.
        attempt: this one and earlier ones.

    Raises:
        TimeoutError: they do not end.
    """
    end_s = time.monotonic() + KILL_S
    while found := list(_left_behind(run_id, reported, attempt)):
        if time.monotonic() >= end_s:
            pids = ", ".join(map(str, found))
            raise TimeoutError(f"processes of an earlier attempt do not end: {pids}")
        for pid in found:
            _kill_group(pid)
        time.sleep(_LOOK_S)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        group = os.getpgid(pid)
        # Every command leads a group of its own.
        if group != os.getpgrp():
            os.killpg(group, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)


def _left_behind(run_id: str, reported: Path, attempt: int) -> Iterator[int]:
    """Yield this user's processes of these attempts, by their environment; none without /proc."""
    with contextlib.suppress(OSError):
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and int(process.name) != os.getpid():
                variables = _variables(process)
                if variables.get(RUN_ID) == run_id and _is_of(
                    Path(variables.get(RESULT, "")), reported, attempt
                ):
                    yield int(process.name)


def _is_of(result: Path, reported: Path, attempt: int) -> bool:
    """Return whether a result's path is of an attempt up to this one in this very folder."""
    number = result.parent.name
    with contextlib.suppress(OSError):
        is_here = number.isdecimal() and result.parent.parent.samefile(reported)
        return is_here and int(number) <= attempt
    return False


def _variables(process: Path) -> dict[str, str]:
    """Return the variables of a process of this user; none of another's or one that has ended."""
    try:
        if process.stat().st_uid != os.getuid():
            return {}
        text = (process / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (os.fsdecode(part).partition("=") for part in text.split(b"\0"))
    return {name: value for name, _, value in pairs}
