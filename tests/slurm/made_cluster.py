"""A SLURM cluster for tests: brought up, disturbed, taken down."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

DEV_CLUSTER = Path(__file__).parents[2] / "slurm" / "dev_cluster"
INSTALL = DEV_CLUSTER / "install.sh"
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
_COMMANDS = ("slurmctld", "slurmd", "munged", "sbatch")

Value = TypeVar("Value")


def is_installed() -> bool:
    found = all(shutil.which(command, path=_PATH) for command in _COMMANDS)
    return found and os.geteuid() == 0


def can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def wait_until(look: Callable[[], Value], what: str, *, seconds: float = 60.0) -> Value:
    """The first true value that ``look`` returns."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := look():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def without_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if not k.startswith(("SLURM_", "SBATCH_"))}


@dataclass(frozen=True)
class Cluster:
    """A cluster of slurm/dev_cluster in a folder of its own."""

    folder: Path

    @staticmethod
    def up(**settings: object) -> Cluster:
        """Brings a new one up; settings as in up.sh."""
        # Short: a socket lies in it. Never a test's own folder, which outlives the test.
        folder = Path(tempfile.mkdtemp(prefix="isoflop-slurm-"))
        environment = without_slurm(os.environ) | {k: str(v) for k, v in settings.items()}
        up = subprocess.run(
            [DEV_CLUSTER / "up.sh", folder], env=environment, capture_output=True, text=True
        )
        assert up.returncode == 0, up.stderr
        return Cluster(folder)

    def down(self) -> None:
        subprocess.run([DEV_CLUSTER / "down.sh", self.folder], check=True)

    @property
    def conf(self) -> Path:
        return self.folder / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to use this cluster whatever the test's own environment says."""
        return without_slurm(os.environ) | {"SLURM_CONF": str(self.conf), "PATH": _PATH}

    def run(self, *command: str | Path, check: bool = True) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(
            list(map(str, command)), env=self.environment, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def sbatch(self, script: str, *options: str) -> str:
        """Sends a shell script; the job's id."""
        log = self.folder / "log" / "job.%A_%a.%j.txt"
        return self.run("sbatch", "--parsable", f"--output={log}", *options, f"--wrap={script}")

    def state(self, job: str) -> str:
        """SLURM's word for a job or an array's element; empty: the controller has forgotten it."""
        return self.run("squeue", "-h", "-r", "-t", "all", "-o", "%T", "-j", job, check=False)

    def field(self, job: str, name: str) -> str:
        """One field of `scontrol show job`."""
        for word in self.run("scontrol", "--oneliner", "show", "job", job).split():
            key, _, value = word.partition("=")
            if key == name:
                return value
        raise AssertionError(f"no {name} of job {job}")

    def wait_for(self, job: str, *states: str, seconds: float = 60.0) -> str:
        return wait_until(
            lambda: (state := self.state(job)) in states and state,
            f"job {job} {' or '.join(states)}",
            seconds=seconds,
        )

    def kill_node(self, node: str) -> None:
        """Its slurmd dies; what runs there goes on, and nobody tells the controller."""
        os.kill(self._process(f"slurmd.{node}"), signal.SIGKILL)

    def kill_controller(self) -> None:
        process = self._process("slurmctld")
        # As a machine would go down: what it knows is saved.
        os.kill(process, signal.SIGTERM)
        wait_until(lambda: not is_alive(process), "slurmctld gone")

    def start_controller(self) -> None:
        self.run("slurmctld")
        wait_until(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld up")

    def log_sizes(self) -> dict[Path, int]:
        """Of the daemons' logs, for :meth:`logs_since`."""
        return {path: path.stat().st_size for path in sorted(self.folder.glob("log/slurm*.log"))}

    def logs_since(self, sizes: Mapping[Path, int]) -> str:
        """What the daemons wrote since then."""
        parts = []
        for path in self.log_sizes():
            new = path.read_bytes()[sizes.get(path, 0) :].decode(errors="replace")
            parts.append(f"== {path.name}\n{new}")
        return "\n".join(parts)

    def _process(self, daemon: str) -> int:
        return int((self.folder / "pid" / f"{daemon}.pid").read_text())


def is_alive(process: int) -> bool:
    try:
        # A zombie has ended.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
