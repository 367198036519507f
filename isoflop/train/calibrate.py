"""Measures optimizer steps: seconds of a plan's shapes on the machine at hand, FLOPs of one run."""

from __future__ import annotations

import dataclasses
import datetime
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from isoflop.accounting.conventions import paper_head
from isoflop.errors import UserError
from isoflop.model import build_model
from isoflop.model.flop_counter import StrictFlopCounter
from isoflop.placement import Placement
from isoflop.plan.estimate.hardware import (
    Calibration,
    MeasuredStep,
    StepShape,
    processor_name,
    shape_key,
)
from isoflop.plan.runs import run_ledger
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.train.batch import made_batch
from isoflop.train.memory import keep_freed_memory, peak_bytes, reset_peak
from isoflop.train.optimizer import recipe_adamw, set_learning_rate
from isoflop.train.step import gradients_of_batch
from isoflop.train.throughput import wait_for
from isoflop_kernels import use_implementation

WARM_UP_STEPS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFlops:
    """FLOPs of one optimizer step of the global batch."""

    planned: int
    """Every matrix product of the ledger (convention `paper+head`) x tokens."""
    executed: int
    """What ran, recomputing included."""
    recomputed: int
    """The part of ``executed`` that repeats the forward pass, where activations are not kept."""


def distinct_shapes(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Return the first spec of each shape, in order."""
    return list({shape_key(spec): spec for spec in reversed(specs)}.values())[::-1]


def calibrate(
    specs: Sequence[RunSpec],
    *,
    steps: int = 10,
    device: str = "cpu",
    num_threads: int = 1,
    on_begin: Callable[[int], None] = lambda num_shapes: None,
    on_measured: Callable[[RunSpec, MeasuredStep], None] = lambda spec, entry: None,
) -> Calibration:
    """Time the optimizer step of every distinct shape, one after the other, in this process.

    A step is that of training: forward, backward, clipping, AdamW; the batch is made up of uniform
    tokens and is the same in each step, so reading data is not in it. Nothing else is started: on a
    CPU whose other cores train too, a step takes longer, since they share caches and memory.

    Args:
        specs: the runs of a plan.
        steps: timed steps per shape, after WARM_UP_STEPS that do not count.
        device: as torch names it.
        num_threads: CPU threads of one operator; `isoflop run` takes 1.
        on_begin: called with the number of shapes, once it is clear that they can be measured.
        on_measured: called with each shape as it is done.

    Raises:
        UserError: fewer than one step, or no such device.
    """
    if steps < 1:
        raise UserError("--steps", steps, "1 or more", "correct it")
    torch_device = _device(device)
    torch.set_num_threads(num_threads)
    keep_freed_memory()
    shapes = distinct_shapes(specs)
    on_begin(len(shapes))
    entries = []
    for spec in shapes:
        entry = measure_step(spec, steps=steps, device=torch_device)
        entries.append(entry)
        on_measured(spec, entry)
    return Calibration(
        kind="cuda" if torch_device.type == "cuda" else "cpu",
        machine=_machine(torch_device),
        torch=torch.__version__,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        num_threads=num_threads,
        entries=tuple(entries),
    )


def measure_step(spec: RunSpec, *, steps: int, device: torch.device) -> MeasuredStep:
    """Return median, least and most seconds of ``steps`` optimizer steps of a run."""
    recipe = get_recipe(spec.recipe)
    reset_peak(device)
    model = build_model(spec).to(device)
    optimizer = recipe_adamw(model, recipe)
    set_learning_rate(optimizer, recipe.peak_lr)
    targets_BT = made_batch(spec)
    seconds = []
    for _ in range(WARM_UP_STEPS + steps):
        wait_for(device)
        begin = time.perf_counter()
        gradients_of_batch(model, targets_BT, clip_norm=recipe.clip_norm, precision=spec.precision)
        optimizer.step()
        wait_for(device)
        seconds.append(time.perf_counter() - begin)
    timed = seconds[WARM_UP_STEPS:]
    return MeasuredStep(
        shape=StepShape.of(spec),
        step_s=statistics.median(timed),
        step_s_min=min(timed),
        step_s_max=max(timed),
        num_steps=len(timed),
        peak_mem_bytes=peak_bytes(device),
    )


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise UserError("--device", name, "cpu or cuda", "correct it")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device", name, "cpu (this machine has no GPU for torch)", "use cpu")
    return torch.device(name)


def _machine(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def measure_step_flops(
    spec: RunSpec, placement: Placement, *, implementation: str = "reference"
) -> StepFlops:
    """Run one training step on the CPU (forward, backward, clipping, AdamW) and count.

    Attention runs as plain matrix products, which is what can be counted. With checkpointing a
    second step without it gives the recomputed part.

    Args:
        spec: the run; its size is what is built, so give a small one.
        placement: of which micro_batch and checkpoint_activations count.
        implementation: of the isoflop_kernels operators.

    Raises:
        UncountedOperatorError: an operator ran whose FLOPs are not counted.
    """
    planned = paper_head(run_ledger(spec)) * spec.batch_size * spec.seq_len
    executed = _step_flops(spec, placement, implementation)
    once = executed
    if placement.checkpoint_activations:
        kept = dataclasses.replace(placement, checkpoint_activations=False)
        once = _step_flops(spec, kept, implementation)
    return StepFlops(planned=planned, executed=executed, recomputed=executed - once)


def _step_flops(spec: RunSpec, placement: Placement, implementation: str) -> int:
    model = build_model(spec)
    model.checkpoint_activations = placement.checkpoint_activations
    recipe = get_recipe(spec.recipe)
    optimizer = recipe_adamw(model, recipe)
    set_learning_rate(optimizer, recipe.peak_lr)
    targets_BT = made_batch(spec)
    with (
        StrictFlopCounter() as counter,
        sdpa_kernel(SDPBackend.MATH),
        use_implementation(implementation),
    ):
        gradients_of_batch(
            model,
            targets_BT,
            clip_norm=recipe.clip_norm,
            precision=spec.precision,
            micro_batch=placement.micro_batch,
        )
        optimizer.step()
    return counter.total
