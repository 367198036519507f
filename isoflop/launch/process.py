"""Processes that records name: which one it was, and whether it still runs.

The number of a process means something only to who is in the same pid namespace of the same boot of
a machine. Host names are no help: those of two containers may coincide, and one may change.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from isoflop.validate import Count, Le, Whole, validated

# Field 22 of /proc/PID/stat, counted from the state letter that follows the command's name.
_START_TIME_AFTER_NAME = 19
# The most that Linux numbers a process by.
_LARGEST_PID = 2**22


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessIdentity:
    """A process, distinct from any other that may get its number later."""

    host: str
    """For people; nothing is decided by it."""
    boot_id: str
    """Empty where the system has none."""
    pid: Annotated[Count, Le(_LARGEST_PID)]
    start_ticks: Whole | None
    """When it started; None: it had gone, or the system does not say."""
    pid_namespace: Whole | None = None
    """None where the system has none, and in records of 0.1.0."""

    @staticmethod
    def of_this_process() -> ProcessIdentity:
        """Return the identity of the calling process."""
        return ProcessIdentity.of(os.getpid())

    @staticmethod
    def of(pid: int) -> ProcessIdentity:
        """Return the identity of a process of this pid namespace."""
        return ProcessIdentity(
            host=platform.node(),
            boot_id=_boot_id(),
            pid=pid,
            start_ticks=_start_ticks(pid),
            pid_namespace=_pid_namespace(),
        )

    def is_alive(self) -> bool | None:
        """Return whether it still runs; None: that cannot be seen from here."""
        here = (_boot_id(), _pid_namespace())
        if (self.boot_id, self.pid_namespace) != here or "" in here or None in here:
            return None
        if self.start_ticks is None:
            return None
        ticks = _start_ticks(self.pid)
        if ticks is None and _is_hidden(self.pid):
            return None
        return ticks == self.start_ticks

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Any) -> ProcessIdentity:
        """Return the inverse of :meth:`to_json`."""
        return validated(ProcessIdentity, values)


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _pid_namespace() -> int | None:
    """Return the number of this process's pid namespace; None: /proc does not show that one."""
    try:
        # A namespace without a /proc of its own may see that of its parent, in which the numbers
        # are those of other processes.
        if Path("/proc/self").readlink() != Path(str(os.getpid())):
            return None
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; None: gone, a zombie or unknowable."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = text.rpartition(")")[2].split()
    return None if after_name[0] == "Z" else int(after_name[_START_TIME_AFTER_NAME])


def _is_hidden(pid: int) -> bool:
    """Return whether there is such a process of another user, which /proc may not show."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return False
