"""What a worker is given of one run, what it returns, and how a run is laid out on GPUs.

Plain values, for any launcher. A layout is the one that the plan's estimate chose, unless the study
or the command line names one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from isoflop.disk import is_recorded
from isoflop.errors import UserError
from isoflop.placement import Placement
from isoflop.spec import AnySpec, RunSpec, run_id, shown_id
from isoflop.study.trainer import ResultTable
from isoflop.validate import Count, Digest, Pattern, Whole, validated

if TYPE_CHECKING:
    from isoflop.launch.run_records import RunResult
    from isoflop.plan.estimate.memory import PlacementEstimate
    from isoflop.train.hooks import RunOutcome

# Exit codes of processes that train runs.
DONE, FAILED, TO_BE_CONTINUED = 0, 1, 75
DISK_FAILED = 74
"""The run failed by its file system (EX_IOERR of sysexits.h), which may take no record of it."""

ASKS_FOR_MORE = "to be continued"
"""Reason of an attempt whose own command ended and wants another one."""

# Entries of a [placement] table that are a layout.
_LAYOUT = ("parallel", "ranks", "micro_batch", "checkpoint_activations")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerJob:
    """How a run's own command is executed; the command itself is in the run's spec."""

    code_folder: str
    """Where it starts: a snapshot of the trainer's code."""
    source: str
    """The folder that this is a snapshot of."""
    resume: Literal["native", "restart"]
    """Whether it goes on from what it left in its folder, or begins anew."""
    result: ResultTable
    n_params: int
    """As planned; compared where the result tells it."""
    decay_start: Whole | None = None
    """Completed steps before its learning rate falls; None: the study does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sibling:
    """Another run of the same trunk."""

    run_id: Digest
    steps: Count
    fork: Count
    """Completed steps up to which every longer run is the same training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrunkJob:
    """What a run has in common with others of its plan; see isoflop.plan.trunks."""

    steps: Count
    """Of the run."""
    fork: Count
    """Completed steps up to which every longer run is the same training."""
    siblings: tuple[Sibling, ...]
    """All others, the shortest first; none only where `keeps` is set."""
    keeps: bool = False
    """Whether its own fork stays, for runs that are planned later."""

    @property
    def longer(self) -> tuple[Sibling, ...]:
        """The siblings that pass the run's fork, the longest first."""
        return tuple(other for other in reversed(self.siblings) if other.steps > self.steps)

    @property
    def shorter(self) -> tuple[Sibling, ...]:
        """The siblings whose forks the run passes, the shortest first."""
        return tuple(other for other in self.siblings if other.steps < self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Which run is to be trained, from which data, and how."""

    study_folder: str
    run_id: Digest
    data_folder: str
    keep_weights: Annotated[str, Pattern(regex="^(none|best|all)$")] = "none"
    """none, best or all, as in the study."""
    placement: Placement = field(default_factory=Placement)
    convention: str = "paper"
    """The study's FLOP convention, in which rates are logged."""
    sinks: tuple[Annotated[str, Pattern(regex="^(tensorboard|wandb)$")], ...] = ()
    """Where metrics go besides the run's folder; see isoflop.launch.sinks."""
    family_digest: str | None = None
    """Of the source of a family from outside the package, as planned; None: a built-in one."""
    trainer: TrainerJob | None = None
    """Of a run by a command of the user's own; None: isoflop trains it."""
    trunk: TrunkJob | None = None
    """None: the run shares nothing."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Any) -> Job:
        """Return the inverse of :meth:`to_json`.

        Raises:
            UserError: a wrong type or value.
        """
        return validated(Job, values)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """How a job ended."""

    status: str
    """done, diverged, failed, held (another process has the run), waits (for a longer run of its
    trunk), interrupted, or gone (the run's folder was moved or removed)."""
    reason: str | None = None
    loss: float | None = None
    wall_s: float | None = None

    @property
    def exit_code(self) -> int:
        """Of a process that trained this run alone; to be continued: start it again."""
        if self.failed_by_disk:
            return DISK_FAILED
        codes = {"done": DONE, "interrupted": TO_BE_CONTINUED, "held": TO_BE_CONTINUED}
        return codes.get(self.status, FAILED)

    @property
    def asks_for_more(self) -> bool:
        """Whether nothing stopped the run but its own command, which goes on in another attempt."""
        return self.status == "interrupted" and self.reason == ASKS_FOR_MORE

    @property
    def failed_by_disk(self) -> bool:
        """Whether its file system could not be written or read: any other run would fail, too."""
        return self.status == "failed" and is_recorded(self.reason)

    @property
    def failed_by_mistake(self) -> bool:
        """Whether a UserError ended it (other data or parameters than planned): it would again."""
        return self.status == "failed" and (self.reason or "").startswith(f"{UserError.__name__}: ")

    @staticmethod
    def of(result: RunResult | RunOutcome) -> JobResult:
        """Return how a run ended by its result, or by what training returned."""
        return JobResult(
            status="interrupted" if result.status == "stopped" else result.status,
            reason=result.status_reason,
            loss=result.loss,
            wall_s=result.wall_s,
        )


def resolve_placement(
    placement: Placement, given: Collection[str], planned: PlacementEstimate | None
) -> Placement:
    """Return the placement of one run, with what the plan chose for it.

    Args:
        placement: of all runs, from the study's table and the command line.
        given: names of the entries that these two hold. A layout is taken whole: one entry of it
            there, and the plan's is not used.
        planned: the estimate's choice; None: there is no estimate, or a command has its own.

    On the CPU nothing changes: there a run takes one core and its whole batch at once.
    """
    if not placement.device.startswith("cuda") or planned is None or not planned.fits:
        return placement
    if any(name in given for name in _LAYOUT):
        return placement
    return dataclasses.replace(
        placement,
        parallel=planned.parallel,
        num_ranks=planned.num_devices,
        micro_batch=None if planned.grad_accum == 1 else planned.micro_batch,
        checkpoint_activations=planned.checkpointing,
    )


def check_layout(spec: AnySpec, placement: Placement) -> None:
    """Refuse a layout in which a run cannot be trained, wherever that is.

    A command of the user's own has a layout of its own.

    Raises:
        UserError: the batch or the tables of experts do not split evenly over the ranks; the CPU
            has no TF32.
    """
    if placement.head == "tf32" and not placement.device.startswith("cuda"):
        raise UserError("head", "tf32", "fp32 or bf16 on the CPU", "leave it out")
    ranks, batch = placement.num_ranks, spec.batch_size
    if ranks == 1 or not isinstance(spec, RunSpec):
        return
    if batch % ranks:
        fitting = ", ".join(str(n) for n in range(2, batch + 1) if batch % n == 0)
        raise UserError(
            "ranks",
            ranks,
            f"a divisor of the batch of {batch} sequences of run {shown_id(run_id(spec))}",
            f"choose one of {fitting}" if fitting else "leave them out",
        )
    if placement.parallel == "channel":
        _check_channels(spec, ranks)


def _check_channels(spec: RunSpec, ranks: int) -> None:
    from isoflop.families import config_from_mapping, is_built_in

    if spec.family != "sgatlin":
        # Only the module of a family from outside the package knows what it is made of.
        if is_built_in(spec.family):
            raise UserError("parallel", "channel", "used with family sgatlin", "take ddp or fsdp")
        return
    num_tables = config_from_mapping(spec.family, spec.config).num_tables
    if num_tables % ranks:
        raise UserError(
            "ranks",
            ranks,
            f"a divisor of the {num_tables} tables of a layer of run {shown_id(run_id(spec))}",
            "choose another number, or take ddp or fsdp",
        )


def check_gpus(placement: Placement) -> None:
    """Refuse a layout of several ranks that the GPUs of this machine are too few for.

    Raises:
        UserError: there are fewer GPUs than ranks.
    """
    if placement.num_ranks == 1 or not placement.device.startswith("cuda"):
        return
    there = num_gpus(placement)
    if placement.num_ranks > there:
        raise UserError(
            "ranks",
            placement.num_ranks,
            f"at most {there}, the GPUs of this machine",
            "ask for fewer, or submit to a cluster",
        )


def num_gpus(placement: Placement) -> int:
    """Return the number of GPUs that torch sees; 0 for a placement that uses none."""
    if not placement.device.startswith("cuda"):
        return 0
    import torch

    return torch.cuda.device_count()


def visible_devices(placement: Placement) -> tuple[str, ...]:
    """Return the GPUs of this machine as CUDA_VISIBLE_DEVICES names them; none for the CPU."""
    if not placement.device.startswith("cuda"):
        return ()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(filter(None, named.split(",")))
    return tuple(str(number) for number in range(num_gpus(placement)))


def assign_device(placement: Placement, worker: int, num_devices: int) -> Placement:
    """Return the placement of a worker's runs: the workers take the GPUs in turn.

    Runs of several ranks choose their devices themselves.
    """
    if placement.device != "cuda" or placement.num_ranks > 1 or num_devices < 2:
        return placement
    return dataclasses.replace(placement, device=f"cuda:{worker % num_devices}")
