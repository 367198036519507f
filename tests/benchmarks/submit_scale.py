"""1,000 runs submitted to a real SLURM on this machine and followed until they are done.

    python tests/benchmarks/submit_scale.py [--runs 1000] [--runs-per-task 50]
        [--max-array-size 1001] [--dry-run]

Prints seconds, peak memory and the calls of SLURM's commands, counted by executables of their
names earlier on the PATH. Training alone is fake (fake_trainer); all else is as on a cluster.
With --dry-run nothing is sent: what is left is `submit --dry-run` and `status`. Needs root, and
SLURM (slurm/dev_cluster/install.sh).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from isoflop.data.prepare import prepare
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.status import study_status
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.planner import Plan, make_plan
from made_studies import micro
from slurm.made_cluster import Cluster

COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel")
ARCHS, SIZES = ("mlp", "swiglu", "moe", "peer", "sgatlin"), (1, 2)
FAKE_TRAINER = Path(__file__).parent / "fake_trainer"
POLL_S = 2.0
_LIVE = ("waiting", "requeued", "running")

# The peak of this process's own memory: that of getrusage begins with its parent's.
_MEASURED = """
import atexit, sys
def report():
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    open(sys.argv[1], "w").write(peak.split()[1])
atexit.register(report)
from isoflop.cli import main
main(sys.argv[2:], prog_name="isoflop")
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command line that was run in a process of its own."""

    seconds: float
    peak_mb: float
    calls: Counter[str]
    output: str

    def row(self, name: str) -> str:
        """A line of the report."""
        return f"{name:30s} {self.seconds:8.2f} {self.peak_mb:8,.0f}   {shown(self.calls)}"


class Counted:
    """SLURM's commands, counted; in tasks too, which inherit the PATH."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "calls"
        self._file.touch()
        self.path = folder / "bin"
        self.path.mkdir()
        for name in COMMANDS:
            real = shutil.which(name, path=_slurm_path())
            assert real is not None
            note = f'echo "{name}${{SLURM_JOB_ID:+ in tasks}}" >>{shlex.quote(str(self._file))}'
            script = self.path / name
            script.write_text(f'#!/bin/sh\n{note}\nexec {shlex.quote(real)} "$@"\n')
            script.chmod(0o755)

    def calls(self) -> Counter[str]:
        """All so far."""
        return Counter(self._file.read_text().splitlines())


def _slurm_path() -> str:
    return os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))


@contextmanager
def cluster_in_use(counted: Counted, max_array_size: int) -> Iterator[None]:
    """A cluster of its own, set as this process's."""
    cluster = Cluster.up(UNTIL_PID=os.getpid(), MAXARRAY=max_array_size)
    try:
        os.environ["SLURM_CONF"] = str(cluster.conf)
        os.environ["PATH"] = os.pathsep.join((str(counted.path), _slurm_path()))
        yield
    finally:
        cluster.down()


class Study:
    """A study of runs that differ by arch, size and seed, and the commands that are measured."""

    def __init__(self, folder: Path, num_runs: int, counted: Counted) -> None:
        self.folder = folder / "study"
        self._scratch = folder
        self._counted = counted
        num_seeds = -(-num_runs // (len(ARCHS) * len(SIZES)))
        study = micro(budgets=(10**9,), archs=ARCHS, sizes=SIZES, seeds=tuple(range(num_seeds)))
        self.folder.mkdir()
        self.plan: Plan = make_plan(study)
        write_plan(self.plan, self.folder)
        prepare(study.source, study.tokenizer)

    def command(self, *arguments: str | Path) -> Command:
        """Runs `isoflop` in a process of its own."""
        peak, before = self._scratch / "peak", self._counted.calls()
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, str(peak), *map(str, arguments)],
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - begin
        assert done.returncode == 0, done.stdout + done.stderr
        return Command(
            seconds=seconds,
            peak_mb=int(peak.read_text()) / 1024,
            calls=_outside_tasks(self._counted.calls() - before),
            output=done.stdout,
        )

    def submit(self, runs_per_task: int, *options: str) -> Command:
        """Sends what is not sent yet, with trainers that are fake."""
        profile = self._scratch / "profile.toml"
        path = f"export PYTHONPATH={shlex.quote(str(FAKE_TRAINER))}:$PYTHONPATH"
        profile.write_text(
            'name = "scale"\nhardware = "cpu2"\npartition = "main"\nthrottle = 8\n'
            f"runs_per_task = {runs_per_task}\nsetup = [{json.dumps(path)}]\n"
        )
        return self.command("submit", self.folder, "--cluster", profile, *options)

    def follow(self) -> tuple[list[float], Counter[str]]:
        """Looks until no run is left to be done; seconds of each look, and the calls of all."""
        before, seconds = self._counted.calls(), []
        while True:
            begin = time.perf_counter()
            status = study_status(self.folder, self.plan)
            seconds.append(time.perf_counter() - begin)
            if not any(state.state in _LIVE for state in status.states):
                return seconds, _outside_tasks(self._counted.calls() - before)
            time.sleep(POLL_S)

    def results(self) -> Counter[str]:
        """How the runs ended, and in how many attempts."""
        folders = [RunFolder(self.folder, run.run_id) for run in self.plan.unique_runs]
        found: Counter[str] = Counter()
        for folder in folders:
            result, num_attempts = folder.result(), len(folder.attempts())
            found[f"{result.status if result else 'missing'} in {num_attempts} attempts"] += 1
        return found


def _outside_tasks(calls: Counter[str]) -> Counter[str]:
    return Counter({name: number for name, number in calls.items() if " " not in name})


def shown(calls: Mapping[str, int]) -> str:
    """`sbatch 1, squeue 2`."""
    return ", ".join(f"{name} {number}" for name, number in sorted(calls.items())) or "none"


def whole_way(study: Study, runs_per_task: int, counted: Counted) -> None:
    """Submits, follows, looks, submits again."""
    begin = time.perf_counter()
    print(study.submit(runs_per_task, "--yes").row("submit"))
    print(study.submit(runs_per_task, "--yes").row("submit again, at once"))
    print(study.command("status", study.folder).row("status, at work"))
    looks, calls = study.follow()
    whole_s = time.perf_counter() - begin
    print(study.command("status", study.folder).row("status, all done"))
    print(study.submit(runs_per_task, "--yes").row("submit again, all done"))
    print(f"{'a look in the same process':30s} {sorted(looks)[len(looks) // 2]:8.2f}", end="")
    print(f"            {shown(calls)} in {len(looks)} looks; slowest {max(looks):.2f} s")
    print(f"{'all done':30s} {whole_s:8.2f}            {shown(study.results())}")
    print(f"calls in all: {shown(counted.calls())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--runs-per-task", type=int, default=50)
    parser.add_argument("--max-array-size", type=int, default=1001)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        counted = Counted(Path(name))
        study = Study(Path(name), given.runs, counted)
        begin = time.perf_counter()
        read_plan(study.folder)
        print(
            f"{len(study.plan.runs):,} runs, {given.runs_per_task} to a task, MaxArraySize", end=""
        )
        print(f" {given.max_array_size}; their plan is read in {time.perf_counter() - begin:.2f} s")
        print(f"{'':30s} {'seconds':>8s} {'peak MB':>8s}   calls")
        with cluster_in_use(counted, given.max_array_size):
            if given.dry_run:
                print(study.submit(given.runs_per_task, "--dry-run").row("submit --dry-run"))
                print(study.command("status", study.folder).row("status"))
            else:
                whole_way(study, given.runs_per_task, counted)


if __name__ == "__main__":
    main()
