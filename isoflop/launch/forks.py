"""What a run takes over from others of its trunk while it trains, and what it leaves for them.

    runs/ID/forks/STEP/           the state at the fork of a shorter run, as a sealed checkpoint
    runs/ID/forks/shared.jsonl    rows as in metrics.jsonl, of steps that shorter runs log and this
                                  one does not; one of experts' usage has the `steps` of its run

Which steps are logged depends on a run's number of steps. A run that begins at a fork writes the
rows of the steps before it into its own metrics.jsonl, as it would have logged them: from the other
run's metrics.jsonl and shared.jsonl, without seconds and rates. Of a run that its trunk did not
know, since it was planned later, the trunk's own rows are taken.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.launch.job import Job, TrunkJob
from isoflop.launch.metrics import Lines, MetricsLog, is_row, newest_by_step, read_rows
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import Attempt, RunResult
from isoflop.launch.trunks import forks_in, inherited, is_needed, newest_step, usable_forks

if TYPE_CHECKING:
    from isoflop.train.checkpoint import CheckpointStore
    from isoflop.train.hooks import StepMetrics
    from isoflop.train.trunk import Fork, SharedTrunk

logger = logging.getLogger("isoflop")

SHARED_FILE = "shared.jsonl"
FIGURES = ("step", "loss", "grad_norm", "lr", "tokens")
"""Of a row of metrics, what a run alone would have had, too."""
# In the order in which a step tells them; None is its metrics.
_ORDER = ("spike", "usage", None, "evaluation")


def leaves(trunk: TrunkJob) -> list[int]:
    """Return the completed steps at which a run may leave a fork, ascending."""
    forks = {other.fork for other in trunk.shorter} | ({trunk.fork} if trunk.keeps else set())
    return sorted(forks)


def served(trunk: TrunkJob) -> dict[int, int]:
    """Return, by the steps of each other run, the last of a run's forks at which it may begin."""
    ends = {}
    for other in trunk.siblings:
        within = [step for step in leaves(trunk) if step <= other.fork]
        if within:
            ends[other.steps] = within[-1]
    return ends


def inherited_by(job: Job, folder: RunFolder) -> RunResult | None:
    """Return the divergence of another run which this one would meet, too; None: there is none."""
    if job.trunk is None:
        return None
    # Where a sibling's records cannot be read, the run is trained.
    with contextlib.suppress(OSError):
        found = inherited(Path(job.study_folder), job.trunk)
        # Where sums have no fixed order it may have come further than the other.
        if found is not None and newest_step(folder) <= found.num_steps:
            return found
    return None


def trunk_of_follower(job: Job, folder: RunFolder) -> SharedTrunk | None:
    """Return what a rank that is not main trains with: the main rank decides."""
    if job.trunk is None:
        return None
    from isoflop.train.trunk import SharedTrunk

    return SharedTrunk(
        leaves=leaves(job.trunk), others=served(job.trunk), stores=_stores(job.trunk, folder)
    )


def _stores(
    trunk: TrunkJob,
    folder: RunFolder,
    *,
    may_write: Callable[[], bool] = lambda: True,
    on_damaged: Callable[[str, int, str], None] = lambda run_id, step, reason: None,
) -> list[CheckpointStore]:
    """Return the forks of a run and of its siblings, in one order for all ranks."""
    from isoflop.train.checkpoint import CheckpointStore

    study = folder.path.parents[1]
    return [
        CheckpointStore(
            each.forks,
            run_id=each.run_id,
            may_write=may_write,
            on_damaged=functools.partial(on_damaged, each.run_id),
            num_kept=None,
        )
        for each in (folder, *(RunFolder(study, other.run_id) for other in trunk.siblings))
    ]


class TrunkLog:
    """One attempt's side of its trunk, on the main rank.

    Args:
        trunk: what the run shares.
        folder: the run's.
        attempt: as claimed.
        log: the run's metrics.
    """

    def __init__(
        self, trunk: TrunkJob, folder: RunFolder, attempt: Attempt, log: MetricsLog
    ) -> None:
        self._trunk = trunk
        self._folder = folder
        self._study = folder.path.parents[1]
        self._attempt = attempt
        self._log = log
        self._served = served(trunk)
        self._lines = self._open() if leaves(trunk) else None

    def _open(self) -> Lines | None:
        """Open shared.jsonl; a file system that does not take it costs no run."""
        try:
            self._folder.forks.mkdir(exist_ok=True)
            return Lines(self._folder.forks / SHARED_FILE)
        except OSError as error:
            logger.warning("no metrics for runs of the same trunk: %s", error)
            return None

    def shared_trunk(self) -> SharedTrunk:
        """Return what the run is trained with; what killed writers left of forks is removed."""
        from isoflop.train.trunk import SharedTrunk

        stores = _stores(
            self._trunk,
            self._folder,
            may_write=lambda: self._folder.may_write(self._attempt),
            on_damaged=self._on_damaged,
        )
        stores[0].clean_up()
        return SharedTrunk(
            leaves=leaves(self._trunk),
            others=self._served,
            stores=stores,
            usable=self._usable,
            is_needed=self._is_needed,
            on_usage_of=self._usage_of,
        )

    def _usable(self) -> list[Fork]:
        from isoflop.train.trunk import Fork

        own = [fork for fork in forks_in(self._folder) if fork.step <= self._trunk.fork]
        others = usable_forks(self._study, self._trunk)
        ids = [self._folder.run_id, *(other.run_id for other in self._trunk.siblings)]
        found = sorted([*own, *others], key=lambda fork: -fork.step)
        return [Fork(ids.index(fork.run_id), fork.step) for fork in found]

    def _is_needed(self, step: int) -> bool:
        try:
            return is_needed(self._study, self._trunk, step)
        except OSError:
            # Whether the run that begins there is done cannot be said.
            return True

    def _on_damaged(self, run_id: str, step: int, reason: str) -> None:
        self._log.event("fork_damaged", {"step": step, "run_id": run_id, "reason": reason})

    def step(self, metrics: StepMetrics) -> None:
        """Keep the metrics of a step that another run logs."""
        self._row({name: getattr(metrics, name) for name in FIGURES})

    def _row(self, values: Mapping[str, Any]) -> None:
        step = values["step"]
        kept = self._trunk.keeps and step < self._trunk.fork
        served = self._served.items()
        if kept or any(step < end and is_row(step, steps) for steps, end in served):
            self._append(values)

    def _usage_of(self, steps: int, values: Mapping[str, Any]) -> None:
        self._append({"event": "usage", "steps": steps, **values})

    def _append(self, values: Mapping[str, Any]) -> None:
        if self._lines is not None:
            self._lines.append({"attempt": self._attempt.number, **values})

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Follow what training tells: `begun` brings the rows of the steps before."""
        if kind == "begun" and values["run_id"] != self._folder.run_id:
            self.take_over(values["run_id"], values["step"])
        if kind == "fork" and self._lines is not None:
            # Whoever begins there finds the rows of the steps before, also after a power cut.
            self._log.sync()
            self._lines.sync()

    def take_over(self, run_id: str, num_steps: int) -> None:
        """Write the rows of the first steps of another run as this run's own.

        What is there already, by an attempt before, is not written again.
        """
        try:
            curve = _Curve(RunFolder(self._study, run_id), num_steps)
            self._write_own(curve)
            for row in curve.steps.values():
                self._row(row)
            for steps in self._served:
                for row in curve.usage_of(steps):
                    self._usage_of(steps, row)
        # A line that nothing of this version wrote costs a curve, and no run.
        except Exception as error:
            logger.warning("no metrics of the steps before the fork: %s", error)

    def _write_own(self, curve: _Curve) -> None:
        steps = self._trunk.steps
        there = {(row.get("event"), row.get("step")) for row in self._folder.metrics()}
        rows = [
            *((None, row) for step, row in curve.steps.items() if is_row(step, steps)),
            *(("usage", row) for row in curve.usage_of(steps)),
            *curve.others(steps),
        ]
        for kind, row in sorted(rows, key=lambda r: (r[1]["step"], _ORDER.index(r[0]))):
            if (kind, row["step"]) in there:
                continue
            if kind is None:
                self._log.row(row)
            else:
                self._log.event(kind, row)

    def close(self) -> None:
        """Close shared.jsonl."""
        if self._lines is not None:
            self._lines.close()


class _Curve:
    """The rows of a run's first steps, each as its newest attempt did it."""

    def __init__(self, folder: RunFolder, num_steps: int) -> None:
        own = _before(folder.metrics(), num_steps)
        shared = _before(read_rows(folder.forks / SHARED_FILE), num_steps)
        self.steps = {
            step: {name: row.get(name) for name in FIGURES}
            for step, row in newest_by_step([*own, *shared]).items()
        }
        self._own = [row for row in own if "event" in row]
        self._shared = [row for row in shared if row.get("event") == "usage"]

    def usage_of(self, steps: int) -> Iterable[dict[str, Any]]:
        """Return the usage of experts as a run of ``steps`` logs it.

        Before this run knew of that one, it gathered for itself alone.
        """
        found = [row for row in self._shared if row.get("steps") == steps]
        first = min((row["step"] for row in found), default=math.inf)
        own = (row for row in self._own if row["event"] == "usage" and row["step"] < first)
        return _newest([*own, *found])

    def others(self, steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the other events that belong to the curve of a run of ``steps``."""
        for kind in ("spike", "evaluation"):
            for row in _newest(row for row in self._own if row["event"] == kind):
                # After its last step a run is evaluated as a result.
                if kind != "evaluation" or row["step"] != steps - 1:
                    yield kind, row


def _before(rows: Iterable[Mapping[str, Any]], num_steps: int) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("step", num_steps) < num_steps]


def _newest(rows: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Return the values of an event by step; attempts follow one another in a file."""
    found = {row["step"]: row for row in rows}
    drop = ("attempt", "event", "steps")
    return [{k: v for k, v in row.items() if k not in drop} for row in found.values()]
