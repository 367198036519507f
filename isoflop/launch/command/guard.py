"""The parent of a run's own command: starts it, passes signals on, and lets nothing outlive it.

    python -I -S guard.py DESCRIPTOR

A program of the standard library alone, since one runs beside every command. DESCRIPTOR is a
socket whose other end the wrapper has. Over it come four bytes with the length of the JSON that
follows (command, env, cwd, left_behind_s), and then bytes, each the number of a signal for the
command's process group; SIGKILL is for all descendants. Back goes one line of JSON: `{"code"}` with
the command's exit code, negative for a signal, or `{"error"}` with the system's words if it could
not be started.

When the socket closes, the wrapper is gone, and all descendants are killed. On Linux these include
processes in sessions of their own, such as torchrun's ranks, whose parents have ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

_KILL_AGAIN_S = 0.02
_POLL_S = 0.05

# Of prctl.
_SET_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Guard:
    """The command and all of its descendants.

    Args:
        control: the wrapper's socket.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._main = 0
        self._code: int | None = None
        self._is_stopping = False

    def run(self, request: dict[str, Any]) -> None:
        """Start the command, wait for its end and that of its descendants, and tell the wrapper."""
        wake, noise = os.pipe()
        for end in (wake, noise):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(noise, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._main, error = _start(request)
        if error is not None:
            self._tell(error=error)
            return
        control, end_s = self._control.fileno(), None
        while not self._reap():
            if self._code is not None and end_s is None:
                end_s = time.monotonic() + request["left_behind_s"]
            ready = select.select([control, wake], [], [], _POLL_S if end_s else None)[0]
            if wake in ready:
                os.read(wake, 4096)
            if control in ready and not self._obey():
                self._kill_all()
                return
            # One that was told to stop may leave processes that save; the wrapper limits that.
            if end_s is not None and time.monotonic() >= end_s and not self._is_stopping:
                self._kill_all()
        self._tell(code=self._code)

    def _obey(self) -> bool:
        """Pass on the signals that came; return whether the wrapper is still there."""
        try:
            numbers = self._control.recv(64)
        except OSError:
            return False
        for number in numbers:
            if number == signal.SIGKILL:
                self._kill_all()
            else:
                self._is_stopping = True
                self._signal_group(number)
        return bool(numbers)

    def _signal_group(self, number: int) -> None:
        # The leader's number is not given to another process before it was waited for; after that
        # the group may have members, which are found as descendants.
        if self._code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._main, number)
            return
        for pid in descendants(os.getpid()):
            _send(pid, number)

    def _kill_all(self) -> None:
        """Kill all descendants, those that they start meanwhile included, and wait for them."""
        while True:
            if self._code is None:
                self._signal_group(signal.SIGKILL)
            for pid in descendants(os.getpid()):
                _send(pid, signal.SIGKILL)
            if self._reap():
                return
            time.sleep(_KILL_AGAIN_S)

    def _reap(self) -> bool:
        """Wait for those that have ended; return whether nothing is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self._main:
                self._code = os.waitstatus_to_exitcode(status)

    def _tell(self, **message: Any) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps(message).encode() + b"\n")


def _start(request: dict[str, Any]) -> tuple[int, str | None]:
    """Return the new process, and the system's words if it could not be started."""
    guard = os.getpid()
    told, tells = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _control_process(_SET_DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != guard:
                os._exit(1)
            for number in (*_IGNORED, signal.SIGCHLD, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.chdir(request["cwd"])
            command = request["command"]
            os.execvpe(command[0], command, request["env"])
        except OSError as error:
            os.write(tells, str(error.strerror).encode())
        finally:
            os._exit(127)
    os.close(tells)
    with os.fdopen(told, "rb") as file:
        text = file.read()
    if not text:
        return pid, None
    os.waitpid(pid, 0)
    return pid, text.decode()


def _receive(control: socket.socket, num_bytes: int) -> bytes:
    """Return so many bytes; none where the wrapper has gone."""
    data = b""
    while len(data) < num_bytes:
        part = control.recv(num_bytes - len(data))
        if not part:
            return b""
        data += part
    return data


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def descendants(root: int) -> Iterator[int]:
    """Yield the processes below one; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir("/proc"):
            if entry.name.isdecimal() and (parent := parent_of(entry.name)) is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    yield from found[1:]


def parent_of(pid: str) -> int | None:
    """Return the process that waits for one; None: that has gone."""
    try:
        with os.fdopen(os.open(f"/proc/{pid}/stat", os.O_RDONLY), "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _control_process(option: int, value: int) -> None:
    """Call prctl, where there is one."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


def main() -> None:
    """Guard one command."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    _control_process(_SET_SUBREAPER, 1)
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    control = socket.socket(fileno=descriptor)
    text = _receive(control, int.from_bytes(_receive(control, 4), "big"))
    if text:
        Guard(control).run(json.loads(text))


if __name__ == "__main__":
    main()
