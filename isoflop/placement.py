"""Where and how a run executes. Nothing here is part of what a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from typing_extensions import TypedDict

from isoflop.errors import UserError
from isoflop.validate import CLOSED, ReadBy

Parallel = Literal["single", "ddp", "fsdp", "channel"]
PARALLEL: tuple[str, ...] = get_args(Parallel)
Head = Literal["fp32", "tf32", "bf16"]
HEADS: tuple[str, ...] = get_args(Head)

COMPILED_DEVICES = ("cuda",)
"""Where a model goes through torch.compile unless told otherwise; on the CPU it hardly helps."""
COMPILED_LAYOUTS = ("single", "ddp")
"""Likewise. The others change the model after it was compiled and compared: it is compiled again,
layer by layer, into what nobody compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Device, layout and cadence of one run; results differ by summation order at most.

    Raises:
        UserError: a value that is not allowed.
    """

    device: str = "cpu"
    """As torch names it."""
    num_threads: int = 1
    """CPU threads of one operator. Results are bit-identical for equal numbers only."""
    parallel: Parallel = "single"
    """How several ranks share a run; see isoflop.train.ranks."""
    num_ranks: int = 1
    """Processes that train the run together, where isoflop itself starts them."""
    micro_batch: int | None = None
    """Sequences that a rank takes through the model at a time; None: its share of the batch."""
    checkpoint_activations: bool = False
    """Recompute each block's activations in the backward pass instead of keeping them."""
    compile: bool | None = None
    """Whether the model goes through torch.compile; None: on GPUs, unless ranks split it."""
    head: Head | None = None
    """How operands of float32 products are rounded; sums are float32. fp32: not at all; tf32: to 10
    bits on CUDA, also those of a run in fp32; bf16: as tf32, and those of the head's to bfloat16.
    None: tf32 on CUDA, as the official code has it on Ampere and later, fp32 on the CPU."""
    checkpoint_every_s: float | None = 300.0
    """Seconds of training between checkpoints; None: not by time."""
    checkpoint_every_steps: int | None = None
    """Optimizer steps between checkpoints; None: not by steps."""
    evaluate_every_steps: int | None = None
    """Optimizer steps between evaluations during training; None: only at the end."""

    def __post_init__(self) -> None:
        if self.parallel not in PARALLEL:
            raise UserError(
                "parallel", self.parallel, f"one of {', '.join(PARALLEL)}", "correct it"
            )
        if self.head is not None and self.head not in HEADS:
            raise UserError("head", self.head, f"one of {', '.join(HEADS)}", "correct it")
        for name in (
            "num_threads",
            "num_ranks",
            "micro_batch",
            "checkpoint_every_steps",
            "evaluate_every_steps",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(name, value, "1 or more", "correct it")
        if self.checkpoint_every_s is not None and not self.checkpoint_every_s >= 0:
            raise UserError(
                "checkpoint_every_s", self.checkpoint_every_s, "0 or more", "correct it"
            )
        if self.num_ranks > 1 and self.parallel == "single":
            raise UserError(
                "ranks", self.num_ranks, "1 without a layout for several", "name one by `parallel`"
            )

    @property
    def compiles(self) -> bool:
        """Return whether the model is to go through torch.compile: as given, or by default."""
        if self.compile is None:
            is_compiled_here = self.device.partition(":")[0] in COMPILED_DEVICES
            return is_compiled_here and self.parallel in COMPILED_LAYOUTS
        return self.compile

    @property
    def head_used(self) -> Head:
        """Return how the head's products are rounded: as given, or what the device has."""
        if self.head is not None:
            return self.head
        return "tf32" if self.device.partition(":")[0] == "cuda" else "fp32"


def _check_is_local(cluster: Any) -> Any:
    if cluster != "local":
        do = "leave it out and name the cluster with `isoflop submit --cluster`"
        raise UserError("placement.cluster", cluster, "'local'", do)
    return cluster


class PlacementTable(TypedDict, total=False):
    """Where to run, as far as it is not left to the command line; see isoflop.placement."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]  # for pydantic, no key

    cluster: Annotated[Literal["local"], ReadBy(function=_check_is_local)]
    device: Literal["cpu", "cuda"]
    workers: int
    parallel: Parallel
    ranks: int
    micro_batch: int
    checkpoint_activations: bool
    compile: bool
    head: Head
    checkpoint_every: int | float
    evaluate_every: int
    sinks: list[Literal["tensorboard", "wandb"]]


def with_layout(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a placement in which ranks need no layout: the command has its own."""
    parallel: Parallel = "ddp"
    return {"parallel": parallel, **table} if "ranks" in table else dict(table)


# What a study's [placement] table and the options of `isoflop run` call the fields; for an option
# the underscores are hyphens.
_FIELDS = {
    "device": "device",
    "parallel": "parallel",
    "ranks": "num_ranks",
    "micro_batch": "micro_batch",
    "checkpoint_activations": "checkpoint_activations",
    "compile": "compile",
    "head": "head",
    "checkpoint_every": "checkpoint_every_s",
    "evaluate_every": "evaluate_every_steps",
}


# With m micro-batches, a dense gradient of each and the sum of all move 16 m - 12 bytes a parameter
# of float32; a gradient that is set to zero and added to in place, 8 m + 4.
SUMMED_IN_PLACE_FROM = 3
"""Micro-batches of a step from which on one device adds gradients of experts' tables in place."""


def placement_from(*tables: Mapping[str, Any]) -> Placement:
    """Return the placement of a study's table and the command line's options; the last one wins.

    None leaves an entry to the tables before; entries of other parts (cluster, workers) are passed
    over.

    Raises:
        UserError: a value that is not allowed.
    """
    given = {
        _FIELDS[name]: value
        for table in tables
        for name, value in table.items()
        if name in _FIELDS and value is not None
    }
    return Placement(**given)
