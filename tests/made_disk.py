"""A small file system of a test's own, which can be filled and made read-only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    folder: Path

    def fill(self, *, but_bytes: int = 0) -> None:
        """Fills it to the last byte, or leaves so many free."""
        found = os.statvfs(self.folder)
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            left = found.f_bavail * found.f_frsize - but_bytes
            while left > 0:
                left -= file.write(bytes(min(left, 2**16)))

    def free(self) -> None:
        self._filler.unlink()

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.folder)], check=True)

    def files(self) -> dict[str, str]:
        """The digest of every file but the filler, and the lock of submissions, which is empty."""
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path != self._filler and path.name != "submit.lock"
        }

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Disk]:
    """A file system in memory; where that is not allowed, the test is skipped."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system takes root")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
