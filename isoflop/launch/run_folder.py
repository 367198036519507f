"""The folder of one run: who may write in it, and what is true of it after any crash.

    spec.json           what the run is, written before its first attempt
    attempts/0001.json  one per attempt, created exclusively: its number is the claim
    lease.json          the holder's attempt number and heartbeat
    metrics.jsonl       as it goes; every row names its attempt
    error-0001.txt      the traceback of an attempt that failed
    trainer/            what a command of the user's own keeps, which may hold links
    reported/0001/      what one attempt of such a command printed and reported
    forks/STEP/         the state at which shorter runs leave this one (isoflop.launch.trunks)
    ckpt/STEP/          checkpoints (isoflop.train.checkpoint), gone once there is a result; the
                        final weights stay where the study keeps them (isoflop.launch.weights)
    result.json         once; the first writer wins; never overwritten

Only the holder of the newest attempt may write, and only where it finds that attempt's file: the
folder of a run at work that was moved away is never made again.

The next attempt may begin when the holder is dead. Whether it is, its process decides where that
can be seen: on the same boot of a machine and in the same pid namespace (isoflop.launch.process).
Else its heartbeat does, since host names may coincide and process numbers mean nothing in another
container.

No two clocks are compared for that: those of machines may be hours apart, and file systems differ
in whose clock dates a file. Whoever wants to begin watches whether the holder writes anything, and
begins when it has not for LEASE_TIMEOUT_S by the watcher's own monotonic clock. Whatever the clocks
show, no run is taken from a live holder. Whoever is to begin several runs watches all their holders
at once (:func:`watch_all`): after a reboot or a kill on another machine that is one wait for all.
Verbs that only look do not watch; they go by the dates, without those in the future.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.files import (
    dump_json,
    read_json,
    read_regular,
    refuse_links,
    write_json_atomic,
    write_once,
)
from isoflop.launch.metrics import LINES_FILE, read_rows
from isoflop.launch.process import ProcessIdentity
from isoflop.launch.run_records import TRAIN_AGAIN, Attempt, AttemptDetails, Lease, RunResult
from isoflop.spec import AnySpec, run_id, shown_id, spec_from_json
from isoflop.validate import in_file, read_record, validated, wrong_in_file

# A holder whose process cannot be seen is gone when its heartbeat has stood still for so long.
# Heartbeats come every few seconds; the margin allows for a stalled shared file system, and for one
# that shows files late.
LEASE_TIMEOUT_S = 120.0
# Whoever watches a heartbeat looks this often.
_WATCH_POLL_S = 1.0

RESULT_SCHEMA_VERSION = 1

# Levels of the folders of a run that isoflop writes or removes something in.
_OWN_FOLDERS = {"attempts": 1, "ckpt": 2, "forks": 2, "interpret": 1, "reported": 1}
_ATTEMPT_FILE = re.compile("[0-9]{4,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """What a holder that cannot be seen had written when somebody began to watch it."""

    signs: str
    """A digest of the files that change while it lives."""
    since_s: float
    """When, by the monotonic clock: all processes of a machine have the same."""


def watch_all(study_folder: Path, run_ids: Iterable[str]) -> dict[str, Watch]:
    """Begin to watch the holders of some runs; return, by run id, those that cannot be seen."""
    found = {}
    for full_run_id in run_ids:
        # What is damaged is told by whoever begins the run.
        with contextlib.suppress(UserError, OSError):
            watch = RunFolder(study_folder, full_run_id).watch()
            if watch is not None:
                found[full_run_id] = watch
    return found


class RunFolder:
    """Reads and writes one run's folder."""

    def __init__(self, study_folder: Path, full_run_id: str) -> None:
        self.run_id = full_run_id
        self.path = study_folder / "runs" / shown_id(full_run_id)
        self.checkpoints = self.path / "ckpt"
        self.forks = self.path / "forks"
        self.trainer = self.path / "trainer"

    def reported(self, attempt: int) -> Path:
        """Return where a command of the user's own reports in an attempt."""
        return self.path / "reported" / f"{attempt:04d}"

    def command_log(self, attempt: int) -> Path:
        """Return the file with what such a command prints in an attempt."""
        return self.reported(attempt) / "log.txt"

    def write_spec(self, spec: AnySpec) -> None:
        """Write spec.json once; a spec that is there already must be this one."""
        assert run_id(spec) == self.run_id
        self.refuse_links()
        if not write_once(self.path / "spec.json", dump_json(spec.to_json()).encode()):
            self.read_spec()

    def read_spec(self) -> AnySpec:
        """Return the run's identity.

        Raises:
            UserError: missing, damaged, or not the spec that the folder is named after.
        """
        path = self.path / "spec.json"
        values = read_json(path, "run spec")
        try:
            spec = spec_from_json(values)
        except UserError as error:
            raise in_file(error, path, error.do) from None
        if run_id(spec) != self.run_id:
            raise UserError(
                "run spec", str(path), f"the spec of run {self.path.name}", "remove the run folder"
            )
        return spec

    def attempts(self) -> list[Attempt]:
        """Return all attempts, oldest first.

        Raises:
            UserError: an attempt file is damaged.
        """
        files = (self.path / "attempts").glob("[0-9]*.json")
        numbered = {int(f.stem): f for f in files if _ATTEMPT_FILE.fullmatch(f.stem)}
        return [_attempt(numbered[number], number) for number in sorted(numbered)]

    def lease(self) -> Lease | None:
        """Return the newest heartbeat, or None before the first.

        Raises:
            UserError: the file is damaged.
        """
        if not self._lease_path.exists():
            return None
        return read_record(Lease, self._lease_path, "lease", "remove the file")

    def result(self) -> RunResult | None:
        """Return the result, or None where there is none yet.

        Raises:
            UserError: damaged, of another version or run, of other steps than the run's spec; or
                there is a link in the folder.
        """
        self.refuse_links()
        path = self.path / "result.json"
        if not path.exists():
            return None
        found = read_record(RunResult, path, "result", TRAIN_AGAIN)
        if found.run_id != self.run_id:
            allowed = f"that of run {self.path.name}"
            raise wrong_in_file(path, "run_id", found.run_id, allowed, TRAIN_AGAIN)
        self._check_steps(found, path)
        return found

    def _check_steps(self, found: RunResult, path: Path) -> None:
        """Check that a run did the steps of its spec, or at most these where it diverged."""
        steps = self.read_spec().steps
        if found.num_steps == steps or (found.status == "diverged" and found.num_steps < steps):
            return
        allowed = f"{steps}, the run's steps"
        raise wrong_in_file(path, "num_steps", found.num_steps, allowed, TRAIN_AGAIN)

    def refuse_links(self) -> None:
        """Refuse symbolic links where records and checkpoints are written and removed.

        Raises:
            UserError: a link.
        """
        refuse_links(self.path.parent)
        refuse_links(self.path, 1)
        # Not below folders of sinks, which make links of their own.
        for name, depth in _OWN_FOLDERS.items():
            refuse_links(self.path / name, depth)

    def checked(self) -> tuple[RunResult | None, UserError | None]:
        """Return the result, and the first mistake in the run's records; None: all can be read."""
        try:
            result = self.result()
            if result is None:
                if (self.path / "spec.json").exists():
                    self.read_spec()
                self.attempts()
                self.lease()
        except UserError as error:
            return None, error
        return result, None

    def is_held(self, newest: Attempt | None) -> bool:
        """Return whether the newest attempt seems to be at work, by one look."""
        if newest is None or newest.ended:
            return False
        alive = newest.holder.is_alive()
        if alive is not None:
            return alive
        last_sign_s = self.last_sign_s(newest)
        return last_sign_s is not None and time.time() - last_sign_s < LEASE_TIMEOUT_S

    def last_sign_s(self, attempt: Attempt) -> float | None:
        """Return the Unix time of an attempt's last sign of life: start, heartbeat or end.

        Clocks may differ: a date that lies in the future by more than LEASE_TIMEOUT_S tells
        nothing. None: all do.
        """
        signs = [attempt.start_s, *([] if attempt.end_s is None else [attempt.end_s])]
        lease = self.lease()
        if lease is not None and lease.attempt == attempt.number:
            # By the holder's clock, and by that of whoever dates files.
            signs += [lease.heartbeat_s, self._lease_path.stat().st_mtime]
        latest_s = time.time() + LEASE_TIMEOUT_S
        return max((sign for sign in signs if sign <= latest_s), default=None)

    def attempt_at_work(self) -> Attempt | None:
        """Return the newest attempt, if a live process seems to be at it."""
        attempts = self.attempts()
        return attempts[-1] if attempts and self.is_held(attempts[-1]) else None

    def watch(self) -> Watch | None:
        """Begin to watch the newest attempt's holder; None: there is none that cannot be seen."""
        attempts = self.attempts()
        if not attempts or attempts[-1].ended or attempts[-1].holder.is_alive() is not None:
            return None
        signs = self._signs_of(attempts[-1])
        # After the look: what is written in between is a sign of life.
        return Watch(signs=signs, since_s=time.monotonic())

    def claim(
        self,
        details: Mapping[str, Any],
        *,
        watch: Watch | None = None,
        should_stop: Callable[[], str | None] = lambda: None,
    ) -> Attempt | None:
        """Begin the next attempt; None if another process holds the run or wins the race.

        Args:
            details: provenance for the attempt's record (device, versions); never identity.
            watch: of the holder, where its process cannot be seen. It goes on until the holder has
                given a sign of life, or none for LEASE_TIMEOUT_S since the watch began. Without a
                watch, or after a sign of life, such a holder has the run: begin a new watch.
            should_stop: called while it watches; a reason ends that with None.
        """
        self.refuse_links()
        attempts = self.attempts()
        newest = attempts[-1] if attempts else None
        if newest is not None and not newest.ended:
            alive = newest.holder.is_alive()
            if alive is None:
                alive = watch is None or not self._stands_still(newest, watch, should_stop)
            if alive:
                return None
        attempt = Attempt(
            number=1 if newest is None else newest.number + 1,
            holder=ProcessIdentity.of_this_process(),
            start_s=time.time(),
            end_s=None,
            exit_reason=None,
            step_range=None,
        )
        record = dump_json(_record(attempt, details)).encode()
        path = self._attempt_path(attempt.number)
        path.parent.mkdir(exist_ok=True)
        if not write_once(path, record, make_folder=False):
            return None
        return dataclasses.replace(attempt, details=_details(details))

    def _stands_still(
        self, newest: Attempt, watch: Watch, should_stop: Callable[[], str | None]
    ) -> bool:
        """Go on watching; return whether there was no sign of life for LEASE_TIMEOUT_S."""
        while True:
            # Before the look, so that a watcher that was itself suspended looks once more.
            left_s = watch.since_s + LEASE_TIMEOUT_S - time.monotonic()
            if should_stop() is not None or self._signs_of(newest) != watch.signs:
                return False
            if left_s <= 0:
                return True
            time.sleep(min(_WATCH_POLL_S, left_s))

    def _signs_of(self, attempt: Attempt) -> str:
        """Return a digest of what changes while an attempt works, ends or is followed."""
        next_one = self._attempt_path(attempt.number + 1)
        own = self._attempt_path(attempt.number)
        signs = [_content(path) for path in (self._lease_path, own, next_one)]
        return hashlib.sha256(repr((attempt.number, signs)).encode()).hexdigest()

    def beat(self, attempt: Attempt, step: int, steps: int, warnings: Sequence[str] = ()) -> None:
        """Write the heartbeat of an attempt, with what it cannot write."""
        values = {
            "attempt": attempt.number,
            "heartbeat_s": time.time(),
            "step": step,
            "steps": steps,
            **({"warnings": list(warnings)} if warnings else {}),
        }
        write_json_atomic(self._lease_path, values, make_folder=False)

    def traceback_file(self, attempt: Attempt) -> Path:
        """Return where an attempt that failed leaves its traceback."""
        return self.path / f"error-{attempt.number:04d}.txt"

    def may_write(self, attempt: Attempt) -> bool:
        """Return whether an attempt may write here: it is the newest, and this is its folder."""
        return not self._attempt_path(attempt.number + 1).exists() and not self.is_gone(attempt)

    def is_gone(self, attempt: Attempt) -> bool:
        """Return whether an attempt's own file is not here: its folder was moved or removed."""
        path = self._attempt_path(attempt.number)
        if not path.exists():
            return True
        try:
            found = _attempt(path, attempt.number)
        except UserError:
            # Damaged: that it is another's cannot be said.
            return False
        return (found.holder, found.start_s) != (attempt.holder, attempt.start_s)

    def end_attempt(
        self,
        attempt: Attempt,
        exit_reason: str,
        *,
        step_range: tuple[int, int] | None = None,
        wall_s: float | None = None,
    ) -> None:
        """Record how an attempt ended, which steps it did and the seconds of training."""
        path = self._attempt_path(attempt.number)
        _attempt(path, attempt.number)
        record = read_json(path, "attempt") | {
            "end_s": time.time(),
            "exit_reason": exit_reason,
            "step_range": None if step_range is None else list(step_range),
            "wall_s": wall_s,
        }
        write_json_atomic(path, record, make_folder=False)

    def write_result(self, attempt: Attempt, values: Mapping[str, Any]) -> bool:
        """Write the result if this attempt may write and there is no result yet."""
        if not self.may_write(attempt):
            return False
        record = {
            "schema_version": RESULT_SCHEMA_VERSION,
            "run_id": self.run_id,
            "attempt": attempt.number,
            **values,
        }
        path = self.path / "result.json"
        return write_once(path, dump_json(record).encode(), make_folder=False)

    def previous_wall_s(self, attempt: Attempt) -> float:
        """Return training seconds that earlier attempts spent, work that was lost included.

        Of an attempt that was killed, only the seconds up to its last row of metrics.
        """
        spent: dict[int, float] = {}
        for row in self.metrics():
            if row["attempt"] < attempt.number and "wall_s" in row:
                spent[row["attempt"]] = row["wall_s"]
        for earlier in self.attempts():
            if earlier.number < attempt.number and earlier.wall_s is not None:
                spent[earlier.number] = earlier.wall_s
        return sum(spent.values())

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Yield rows of metrics.jsonl; a line cut off by a crash is skipped."""
        return read_rows(self.path / LINES_FILE)

    @property
    def _lease_path(self) -> Path:
        return self.path / "lease.json"

    def _attempt_path(self, number: int) -> Path:
        return self.path / "attempts" / f"{number:04d}.json"


def _content(path: Path) -> bytes | None:
    try:
        return read_regular(path)
    except FileNotFoundError:
        return None


def _record(attempt: Attempt, details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "holder": attempt.holder.to_json(),
        "start_s": attempt.start_s,
        "end_s": attempt.end_s,
        "exit_reason": attempt.exit_reason,
        "step_range": None,
        "wall_s": None,
        "details": dict(details),
    }


def _details(values: Mapping[str, Any]) -> AttemptDetails:
    return validated(AttemptDetails, dict(values))


def _attempt(path: Path, number: int) -> Attempt:
    found = read_record(Attempt, path, "attempt", "remove the file")
    if found.number != number:
        allowed = "as the file is called"
        raise wrong_in_file(path, "number", found.number, allowed, "remove the file")
    return found
