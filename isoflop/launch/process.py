"""Which process holds a run, and whether it still lives."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Field 22 of /proc/PID/stat, counted from the state letter that follows the command's name.
_START_TIME_AFTER_NAME = 19


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since boot; None if it is gone, a zombie or unknowable."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = text.rpartition(")")[2].split()
    return None if after_name[0] == "Z" else int(after_name[_START_TIME_AFTER_NAME])


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessIdentity:
    """A process, told apart from any other that may get its number later."""

    host: str
    boot_id: str
    """Empty where the system tells none."""
    pid: int
    start_ticks: int | None

    @staticmethod
    def of_this_process() -> ProcessIdentity:
        """Return the identity of the calling process."""
        return ProcessIdentity(
            host=platform.node(),
            boot_id=_boot_id(),
            pid=os.getpid(),
            start_ticks=_start_ticks(os.getpid()),
        )

    @property
    def on_this_machine(self) -> bool:
        """Whether the process belongs to this machine (perhaps before its last boot)."""
        return self.host == platform.node()

    def is_alive(self) -> bool:
        """Return whether a process of this machine still runs."""
        if self.boot_id != _boot_id():
            return False
        if self.start_ticks is not None:
            return _start_ticks(self.pid) == self.start_ticks
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Any) -> ProcessIdentity:
        """Return the inverse of :meth:`to_json`."""
        return ProcessIdentity(
            host=str(values["host"]),
            boot_id=str(values["boot_id"]),
            pid=int(values["pid"]),
            start_ticks=None if values["start_ticks"] is None else int(values["start_ticks"]),
        )
