"""Where the command of a run leaves its state for shorter runs, and where it takes over one.

    runs/LONGER/forks/STEP/    {branch_dir}/STEP: what its command left at STEP completed steps
    runs/ID/began.json         the fork of which runs/ID/trainer was a copy at first

What lies in a fork is the command's own and cannot be verified: a command that does not get on with
it fails, as with any checkpoint of its own. A fork with links or other special files in it is not
taken, nor is one that somebody removes meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.files import fsync_path, refuse_links, write_json_atomic
from isoflop.launch.command.curve import CurvePoint
from isoflop.launch.forks import FIGURES, leaves
from isoflop.launch.job import TrunkJob
from isoflop.launch.metrics import MetricsLog, newest_by_step
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import Attempt, RunResult
from isoflop.launch.trunks import (
    Fork,
    forks_in,
    has_begun,
    inherited,
    is_needed,
    remove_fork,
    usable_forks,
)
from isoflop.validate import Count, Digest, Seconds, Whole, read_record

BEGAN_FILE = "began.json"

_COPIED_BYTES = 2**20
_MISSING = "the command went on without leaving its state (isoflop.trainer.branch)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Began:
    """Where a run began that took over the state of a longer one."""

    run_id: Digest
    """Of the longer run."""
    step: Count
    """Completed steps of that state."""
    attempt: Whole
    """The newest one of the longer run when the state was copied."""
    wall_s: Seconds
    """Seconds of the steps that the longer run had not done itself, but taken over."""


class UnusableForkError(Exception):
    """A fork cannot be copied; the message says why."""


class CommandTrunk:
    """One attempt's side of its trunk; of a run that shares none, nothing is to be left.

    Args:
        study_folder: the study's folder.
        trunk: what the run shares; None: nothing.
        folder: the run's.
        attempt: as claimed.
    """

    def __init__(
        self, study_folder: Path, trunk: TrunkJob | None, folder: RunFolder, attempt: Attempt
    ) -> None:
        self._study_folder = study_folder
        self._trunk = trunk
        self._folder = folder
        self._attempt = attempt
        self._unusable: list[tuple[Fork, str]] = []
        self._refused: list[tuple[int, str]] = []
        self._pending: set[int] = set()
        self._took_over = False
        self.began: Began | None = None
        """Where the run began; None: at its first step."""
        self.asked: tuple[int, ...] = ()
        """Completed steps at which the command is to leave its state, ascending."""
        self.missed: tuple[int, ...] = ()
        """Those of them that it passed without."""

    def inherited(self) -> RunResult | None:
        """Return the divergence of another run that this one would meet, too; None: there is none.

        Only one that came into the curve as a loss that is no number: of any other it is not known
        whether it lies in what both runs have in common. A run that has begun finds out itself.
        """
        if self._trunk is None or has_begun(self._folder):
            return None
        for other in self._trunk.siblings:
            found = inherited(
                self._study_folder, dataclasses.replace(self._trunk, siblings=(other,))
            )
            if found is None:
                continue
            # What is damaged there is told where that run is begun.
            with contextlib.suppress(UserError, OSError):
                rows = newest_by_step(RunFolder(self._study_folder, other.run_id).metrics())
                if rows and rows[max(rows)].get("loss") is None and max(rows) <= found.num_steps:
                    return found
        return None

    def begin(self, may_go_on: Callable[[], bool]) -> None:
        """Take over the latest fork there is, unless the run has begun; find out what to leave.

        Args:
            may_go_on: asked while files are copied; False ends that, and the run has not begun.

        Raises:
            UserError: a link in the place of a run's folder or of its forks; a damaged record.
            OSError: the copy cannot be written.
        """
        if self._trunk is None:
            return
        for left in itertools.chain(
            self._folder.path.glob(".trainer.*.tmp"), self._folder.forks.glob(".*.tmp")
        ):
            shutil.rmtree(left, ignore_errors=True)
        record = self._folder.path / BEGAN_FILE
        if has_begun(self._folder):
            self.began = _read_began(self._folder)
        else:
            # Of a copy that did not come into its place.
            record.unlink(missing_ok=True)
            self._take_over(self._trunk, record, may_go_on)
        at = 0 if self.began is None else self.began.step
        there = {fork.step for fork in forks_in(self._folder)}
        self.asked = tuple(
            step
            for step in leaves(self._trunk)
            if step > at and step not in there and is_needed(self._study_folder, self._trunk, step)
        )
        self._pending = set(self.asked)
        if self.asked:
            self._folder.forks.mkdir(exist_ok=True)

    def _take_over(self, trunk: TrunkJob, record: Path, may_go_on: Callable[[], bool]) -> None:
        for other in trunk.siblings:
            folder = RunFolder(self._study_folder, other.run_id)
            refuse_links(folder.path)
            refuse_links(folder.forks)
        for fork in usable_forks(self._study_folder, trunk):
            if fork.step < 1:
                continue
            name = f".trainer.{os.getpid()}-{secrets.token_hex(4)}.tmp"
            temporary = self._folder.path / name
            try:
                _copy(fork.path, temporary, may_go_on)
                if not may_go_on():
                    return
                if not self._folder.may_write(self._attempt):
                    return
                began = self._record_of(fork)
                # Before the copy is in its place: without it the record is not believed.
                write_json_atomic(record, dataclasses.asdict(began), make_folder=False)
                temporary.rename(self._folder.trainer)
                fsync_path(self._folder.path)
                self.began, self._took_over = began, True
                return
            except UnusableForkError as error:
                self._unusable.append((fork, str(error)))
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _record_of(self, fork: Fork) -> Began:
        """Return the record of a run that begins at a fork."""
        attempt, before_s = 0, 0.0
        # They only say how long the state took.
        with contextlib.suppress(UserError, OSError):
            folder = self._longer(fork.run_id)
            attempt = max((each.number for each in folder.attempts()), default=0)
            if (there := _read_began(folder)) is not None:
                before_s = there.wall_s
                before_s += self.seconds_until(there.run_id, there.step, there.attempt)
        return Began(run_id=fork.run_id, step=fork.step, attempt=attempt, wall_s=before_s)

    def _longer(self, run_id: str) -> RunFolder:
        return RunFolder(self._study_folder, run_id)

    def tell_of_beginning(self, log: MetricsLog) -> None:
        """Write where the run began, its curve until there, and which forks it passed over."""
        for fork, reason in self._unusable:
            values = {"step": fork.step, "run_id": fork.run_id, "reason": reason}
            log.event("fork_damaged", values)
        if self.began is not None:
            if self._took_over:
                log.event("begun", {"step": self.began.step, "run_id": self.began.run_id})
            self.take_over_curve(log, self.began.run_id, self.began.step)

    def take_over_curve(self, log: MetricsLog, run_id: str, step: int) -> None:
        """Write the points of another run until a step, but for those that the run has itself.

        Args:
            log: of the run.
            run_id: of the other one.
            step: the last one; the one after so many completed steps is among them however the
                command counts, and the run's own point of it, if there is one, is newer.
        """
        with contextlib.suppress(UserError, OSError):
            own = newest_by_step(self._folder.metrics())
            for row in newest_by_step(self._longer(run_id).metrics()).values():
                if row["step"] > step or row["step"] in own:
                    continue
                found = {name: row[name] for name in FIGURES if name in row}
                loss = row.get("loss")
                log.row({**found, "loss": math.nan if loss is None else loss})

    def trunk_values(self) -> dict[str, Any]:
        """Return the fields of a result that say what a longer run did of this one.

        Raises:
            UserError: the record of where it began is damaged.
        """
        began = _read_began(self._folder)
        if began is None:
            return {}
        wall_s = self.seconds_until(began.run_id, began.step, began.attempt)
        return {"trunk_steps": began.step, "trunk_wall_s": wall_s + began.wall_s}

    def seconds_until(self, run_id: str, step: int, attempt: int | None = None) -> float:
        """Return the seconds that another run took until a step, by its curve; 0: it has none.

        Args:
            run_id: of the other run.
            step: the last point of the curve is at this step or before it.
            attempt: later ones do not count; None: all do.
        """
        with contextlib.suppress(UserError, OSError):
            folder = self._longer(run_id)
            until: dict[int, float] = {}
            whole: dict[int, float] = {}
            for row in folder.metrics():
                number = row["attempt"]
                if {"step", "wall_s"} <= row.keys() and (attempt is None or number <= attempt):
                    whole[number] = row["wall_s"]
                    if row["step"] <= step:
                        until[number] = row["wall_s"]
            ended = {each.number: each.wall_s for each in folder.attempts()}
            whole |= {number: wall_s for number, wall_s in ended.items() if wall_s is not None}
            last = max(until, default=0)
            own_s = until.get(last, 0.0)
            return own_s + sum(wall_s for number, wall_s in whole.items() if number < last)
        return 0.0

    def look(self, reported: int | None, *, is_done: bool = False) -> None:
        """See which of the states that were asked for are there.

        Args:
            reported: the newest step of the curve; None: there is none.
            is_done: the command trained to its end.
        """
        if self._trunk is None:
            return
        for step in sorted(self._pending):
            fork = self._folder.forks / str(step)
            if fork.is_dir():
                self._refuse_special(fork)
            elif is_needed(self._study_folder, self._trunk, step):
                continue
            self._pending.remove(step)
        passed = -1 if reported is None else reported
        self.missed = tuple(step for step in sorted(self._pending) if is_done or passed > step)

    def completed(self, step: int) -> int:
        """Return a reported step; one less while the state at it is due, which others wait for."""
        return step - 1 if step in self._pending else step

    def warnings(self) -> Iterator[str]:
        """Yield what the command did not leave, for the run's status."""
        for step in self.missed:
            yield f"no state for shorter runs at step {step} (see isoflop.trainer.branch)"

    def tell_of_end(self, log: MetricsLog, newest: CurvePoint | None, *, is_done: bool) -> None:
        """Write which states were not left, once for a run, and which were not taken.

        Args:
            log: of the run, which is open for the last time.
            newest: point of the curve.
            is_done: the command trained to its end.
        """
        if self._trunk is None:
            return
        self.look(None if newest is None else newest.step, is_done=is_done)
        if self.began is not None:
            # What the longer run had not written yet when this one began.
            self.take_over_curve(log, self.began.run_id, self.began.step)
        rows = self._folder.metrics() if self.missed else ()
        told = {row.get("step") for row in rows if row.get("event") == "fork_failed"}
        for step in self.missed:
            if step not in told:
                log.event("fork_failed", {"step": step, "reason": _MISSING})
        for step, reason in self._refused:
            log.event("fork_failed", {"step": step, "reason": reason})

    def _refuse_special(self, fork: Path) -> None:
        """Remove a state with links in it: they are refused wherever the run's records are read."""
        refuse_links(self._folder.forks)
        if (reason := _special(fork)) is not None:
            self._refused.append((int(fork.name), reason))
            if fork.is_symlink():
                fork.unlink()
            else:
                remove_fork(fork)


def _read_began(folder: RunFolder) -> Began | None:
    """Return where a run began that took over a state; None: at its first step.

    Raises:
        UserError: the record is damaged.
    """
    path = folder.path / BEGAN_FILE
    if not path.exists():
        return None
    do = "remove the file and trainer/ beside it to begin anew"
    return read_record(Began, path, "fork", do)


def _special(folder: Path) -> str | None:
    """Return what makes a fork one that is not taken; None: it has files and folders alone."""
    try:
        for path, about in _below(folder):
            if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
                return f"{path.name} is a link or a special file"
    except FileNotFoundError:
        return None
    return None


def _below(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield a folder and all in it, each folder before what it has; links are not followed."""
    waiting = [top]
    while waiting:
        path = waiting.pop()
        about = path.lstat()
        yield path, about
        if stat.S_ISDIR(about.st_mode):
            waiting += sorted(path.iterdir(), reverse=True)


def _copy(source: Path, target: Path, may_go_on: Callable[[], bool]) -> None:
    """Copy a fork, its files' dates with them; every byte, since commands write into their files.

    Args:
        source: the fork.
        target: a folder that is not there yet.
        may_go_on: asked between parts; False ends it, with a part of the copy.

    Raises:
        UnusableForkError: a link or a special file in it, or it cannot be read.
        OSError: the copy cannot be written.
    """
    folders: list[Path] = []
    entries = _below(source)
    while may_go_on():
        with _reading():
            found = next(entries, None)
        if found is None:
            break
        path, about = found
        copy = target / path.relative_to(source)
        if stat.S_ISDIR(about.st_mode):
            copy.mkdir()
            folders.append(copy)
        elif stat.S_ISREG(about.st_mode) and path != source:
            _copy_file(path, copy, may_go_on)
            os.utime(copy, ns=(about.st_atime_ns, about.st_mtime_ns))
        else:
            raise UnusableForkError(f"{path.name} is no folder and no file of its own")
    for folder in folders:
        fsync_path(folder)


def _copy_file(source: Path, copy: Path, may_go_on: Callable[[], bool]) -> None:
    with _reading():
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file, copy.open("xb") as written:
        while may_go_on():
            with _reading():
                part = file.read(_COPIED_BYTES)
            if not part:
                break
            written.write(part)
        written.flush()
        os.fsync(written.fileno())


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turn what goes wrong in reading a fork into an UnusableForkError."""
    try:
        yield
    except OSError as error:
        raise UnusableForkError(str(error.strerror)) from None
