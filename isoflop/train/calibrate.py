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
from isoflop.model import Transformer, build_model
from isoflop.model.flop_counter import StrictFlopCounter
from isoflop.placement import Placement
from isoflop.plan.estimate.hardware import (
    Calibration,
    Hardware,
    MeasuredStep,
    StepShape,
    load_hardware,
    processor_name,
    shape_key,
)
from isoflop.plan.estimate.memory import choose_placement
from isoflop.plan.runs import run_ledger
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.train.batch import made_batch
from isoflop.train.compiled import compared_part, compile_model
from isoflop.train.memory import keep_freed_memory, peak_bytes, reset_peak
from isoflop.train.optimizer import recipe_adamw, set_learning_rate
from isoflop.train.step import gradients_of_batch, set_float32_products
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
    micro_batch: int | None = None,
    on_begin: Callable[[int], None] = lambda num_shapes: None,
    on_measured: Callable[[RunSpec, Calibration], None] = lambda spec, so_far: None,
    on_failed: Callable[[RunSpec, str], None] = lambda spec, why: None,
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
        micro_batch: sequences that are taken through the model at a time, at most a shape's batch;
            None: on a GPU as many as the placement of an estimate takes, else all.
        on_begin: called with the number of shapes, once it is clear that they can be measured.
        on_measured: called as each shape is done with all that was measured so far, it the last.
        on_failed: called with each shape that the device's memory does not hold, and why.

    Raises:
        UserError: fewer than one step or sequence, or no such device.
    """
    for name, value in (("--steps", steps), ("--micro-batch", micro_batch)):
        if value is not None and value < 1:
            raise UserError(name, value, "1 or more", "correct it")
    torch_device = _device(device)
    torch.set_num_threads(num_threads)
    keep_freed_memory()
    set_float32_products(Placement(device=device))
    shapes = distinct_shapes(specs)
    on_begin(len(shapes))
    so_far = Calibration(
        kind="cuda" if torch_device.type == "cuda" else "cpu",
        machine=_machine(torch_device),
        torch=torch.__version__,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        num_threads=num_threads,
        entries=(),
    )
    for spec in shapes:
        placement = _placement(spec, torch_device, micro_batch)
        if isinstance(placement, str):
            on_failed(spec, placement)
            continue
        try:
            entry = measure_step(spec, placement, steps=steps)
        except torch.OutOfMemoryError as error:
            on_failed(spec, str(error).partition("\n")[0])
            continue
        so_far = dataclasses.replace(so_far, entries=(*so_far.entries, entry))
        on_measured(spec, so_far)
    return so_far


def _placement(spec: RunSpec, device: torch.device, micro_batch: int | None) -> Placement | str:
    """Return how a step is laid out on one device; or why none holds it."""
    if micro_batch is not None or device.type == "cpu":
        rows = min(micro_batch or spec.batch_size, spec.batch_size)
        return Placement(device=device.type, micro_batch=rows)
    total = torch.cuda.get_device_properties(device).total_memory
    found = choose_placement(spec, device_of_memory(total), num_devices=1)
    if not found.fits:
        return found.reason
    return Placement(
        device=device.type,
        micro_batch=found.micro_batch,
        checkpoint_activations=found.checkpointing,
    )


def device_of_memory(num_bytes: int) -> Hardware:
    """Return a GPU with that much memory, which is all that a placement on one depends on."""
    return dataclasses.replace(load_hardware("h100"), name="this GPU", memory_bytes=num_bytes)


def measure_step(spec: RunSpec, placement: Placement, *, steps: int) -> MeasuredStep:
    """Return median, least and most seconds of ``steps`` optimizer steps of a run.

    Where runs are compiled by default, so is this.
    """
    device = torch.device(placement.device)
    reset_peak(device)
    model = build_model(spec).to(device)
    model.checkpoint_activations = placement.checkpoint_activations
    if placement.compiles:
        part, in_place = compared_part(spec, placement.micro_batch)
        compile_model(model, part, precision=spec.precision, in_place=in_place)
    step = _step_of(model, spec, placement)
    seconds = []
    for _ in range(WARM_UP_STEPS + steps):
        wait_for(device)
        begin = time.perf_counter()
        step()
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
        micro_batch=placement.micro_batch,
        checkpointing=placement.checkpoint_activations,
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
    step = _step_of(model, spec, placement)
    with (
        StrictFlopCounter() as counter,
        sdpa_kernel(SDPBackend.MATH),
        use_implementation(implementation),
    ):
        step()
    return counter.total


def _step_of(model: Transformer, spec: RunSpec, placement: Placement) -> Callable[[], None]:
    """Return what takes one optimizer step of a run, of made tokens: the same in each call."""
    recipe = get_recipe(spec.recipe)
    optimizer = recipe_adamw(model, recipe)
    set_learning_rate(optimizer, recipe.peak_lr)
    targets_BT = made_batch(spec)

    def step() -> None:
        gradients_of_batch(
            model,
            targets_BT,
            clip_norm=recipe.clip_norm,
            precision=spec.precision,
            micro_batch=placement.micro_batch,
        )
        optimizer.step()

    return step
