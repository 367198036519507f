"""The records of a run's folder, as its files have them; see isoflop.launch.run_folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from isoflop.errors import UserError
from isoflop.launch.process import ProcessIdentity
from isoflop.placement import Head, Placement
from isoflop.validate import Count, Digest, Pattern, Seconds, UnixTime, Whole

TRAIN_AGAIN = "remove the file to train the run again"

_Digits = Annotated[str, Pattern(regex="^[0-9]{1,19}$")]


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmDetails:
    """The job that an attempt ran in, as SLURM's variables have it."""

    job_id: _Digits
    array_job_id: _Digits | None = None
    array_task_id: _Digits | None = None
    node: str | None = None
    restart_count: _Digits = "0"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptDetails:
    """What is used of an attempt's provenance; versions and the like are for people."""

    placement: Placement | None = None
    """None: attempts of an earlier version do not record it."""
    slurm: SlurmDetails | None = None
    """None: it was in no job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One attempt at a run, as its file has it."""

    number: Count
    holder: ProcessIdentity
    start_s: UnixTime
    """Unix time at which it began."""
    end_s: UnixTime | None
    exit_reason: str | None
    """done, diverged, failed: …, interrupted: SIGNAL, superseded, already complete; None while
    running or after a kill."""
    step_range: tuple[Whole, Whole] | None
    """First and last step that it completed; None: none, or it was killed."""
    wall_s: Seconds | None = None
    """Seconds of training; None: none, it was killed, or it is of an earlier version."""
    details: AttemptDetails = field(default_factory=AttemptDetails)

    @property
    def job_id(self) -> str | None:
        """The scheduler's name of the job that it ran in: 123_4 or 123; None: it was in none."""
        job = self.details.slurm
        if job is None:
            return None
        if job.array_job_id is not None and job.array_task_id is not None:
            return f"{job.array_job_id}_{job.array_task_id}"
        return job.job_id

    @property
    def node(self) -> str | None:
        """The node of that job."""
        return None if self.details.slurm is None else self.details.slurm.node

    @property
    def restarts(self) -> int:
        """How often that job had been requeued before."""
        return 0 if self.details.slurm is None else int(self.details.slurm.restart_count)

    @property
    def ended(self) -> bool:
        """Whether the attempt recorded its own end."""
        return self.end_s is not None

    @property
    def failed(self) -> bool:
        """Whether it ended by an error of the code or the machine."""
        return self.exit_reason is not None and self.exit_reason.startswith("failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The newest heartbeat of a run."""

    attempt: Count
    heartbeat_s: UnixTime
    step: Whole
    steps: Whole
    warnings: tuple[str, ...] = ()
    """What the attempt cannot write now; it goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What came of a run; see isoflop.train.hooks.RunOutcome for the figures."""

    schema_version: Literal[1]
    run_id: Digest
    attempt: Count
    """The attempt that wrote it."""
    status: Literal["done", "diverged"]
    status_reason: str | None
    loss: float | None
    """A number where the run is done."""
    num_steps: Whole
    loss_se: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    bits_per_byte_se: float | None = None
    reference_perplexity: float | None = None
    wall_s: Seconds | None = None
    step_s_median: Seconds | None = None
    tokens_per_s: float | None = None
    peak_mem_bytes: Whole | None = None
    head: Head | None = None
    """How the head's products were rounded; None: not recorded, or a trainer of one's own."""
    trunk_steps: Whole = 0
    """Of its steps, those that a longer run did before this one left it."""
    trunk_wall_s: Seconds = 0.0
    """Seconds of these steps, which are in wall_s."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further numbers that a command of the user's own reported, by the study's names."""

    @property
    def num_own_steps(self) -> int:
        """Steps that were executed for this run alone."""
        return self.num_steps - self.trunk_steps

    def __post_init__(self) -> None:
        if self.status == "done" and self.loss is None:
            raise UserError("loss", None, "a number where the run is done", TRAIN_AGAIN)
