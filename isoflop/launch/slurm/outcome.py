"""What became of one submission: what the scheduler took, refused, or was not asked for yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from isoflop.launch.slurm.records import SentArray


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmitReport:
    """Outcome of one submission."""

    submission_id: str | None
    """None: there was nothing to send."""
    arrays: tuple[SentArray, ...]
    num_done: int
    """Runs that had a result before."""
    num_live: int
    """Runs that are at work, or in the queue, already."""
    parked: tuple[str, ...]
    left: tuple[str, ...] = ()
    """Runs that the limit on submitted tasks left for later."""
    num_tasks: int = 0
    """Jobs and tasks of arrays in the queue, with those that were sent."""
    hidden: Mapping[str, str] = field(default_factory=dict)
    """Runs whose job may be there without being shown, with the reason; they were not sent."""
    fit_is_left: bool = False
    """Whether the job that fits was left for later, too."""
    unanswered: str | None = None
    """What sbatch said in place of the scheduler's answer; None: every array was answered."""
    is_local: bool = False
    """Whether jobs are processes of this machine."""

    @property
    def num_sent(self) -> int:
        """Runs in jobs that the scheduler took."""
        return sum(len(task) for array in self._taken for task in array.tasks)

    @property
    def job_ids(self) -> list[str]:
        """The scheduler's, of arrays and single jobs."""
        return [str(array.job_id) for array in self._taken]

    @property
    def rejected(self) -> dict[str, int]:
        """Number of refused runs, by the scheduler's message."""
        rejected: dict[str, int] = {}
        for array in self.arrays:
            if array.rejected is not None and not array.is_fit:
                num_runs = sum(map(len, array.tasks))
                rejected[array.rejected] = rejected.get(array.rejected, 0) + num_runs
        return rejected

    @property
    def unknown(self) -> tuple[str, ...]:
        """Runs of which it is not known whether the scheduler took them."""
        arrays = (a for a in self.arrays if a.job_id is None and a.rejected is None)
        return tuple(run_id for array in arrays for task in array.tasks for run_id in task)

    @property
    def fit(self) -> SentArray | None:
        """The job that fits when all is over; None: it was not asked for, or not sent."""
        return next((array for array in self.arrays if array.is_fit), None)

    @property
    def _taken(self) -> list[SentArray]:
        return [array for array in self.arrays if array.job_id is not None and not array.is_fit]
