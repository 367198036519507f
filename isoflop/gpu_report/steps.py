"""Optimizer steps of whole models on this machine, by part, against the estimates of a plan."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from isoflop.gpu_report.machine import multiplying_in_tf32
from isoflop.gpu_report.parts import PARTS, part_of_estimate, seconds_by_part
from isoflop.gpu_report.profiles import hardware_of
from isoflop.gpu_report.records import Job, Row
from isoflop.model.transformer import Transformer, uninitialised_model
from isoflop.plan.estimate.hardware import Hardware
from isoflop.plan.estimate.memory import (
    PlacementEstimate,
    choose_placement,
    model_shape,
)
from isoflop.plan.estimate.time import estimate_step
from isoflop.plan.estimate.traffic import FUSED_SHARE
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.train.batch import made_batch, rank_batch
from isoflop.train.compiled import NotCompiled, compile_model
from isoflop.train.memory import is_out_of_memory
from isoflop.train.optimizer import recipe_adamw, set_learning_rate
from isoflop.train.step import gradients_of_batch
from isoflop.train.throughput import wait_for
from isoflop_kernels import use_implementation

_LEARNING_RATE = 1e-4
# Of the free memory, what one of several processes may take.
_SHARED = 0.5


def step_spec(values: Mapping[str, Any]) -> RunSpec:
    """Return what a job trains: a rung of a recipe's ladder, the micro-batch as its whole batch."""
    recipe = get_recipe(values["recipe"])
    shape = recipe.shape(values["rung"])
    return RunSpec(
        family=values["family"],
        config=values.get("config") or dict(recipe.config(values["family"], values["rung"])),
        d_model=shape.d_model,
        n_layers=values.get("n_layers", shape.n_layers),
        n_heads=shape.n_heads,
        vocab_size=values["vocab_size"],
        seq_len=values["seq_len"],
        batch_size=values["micro_batch"],
        steps=1000,
        data_id="made up",
        tokenizer_hash="none",
        seed=0,
        recipe=recipe.name,
        precision=values["precision"],
    )


def made_model(spec: RunSpec, device: torch.device) -> Transformer:
    """Return a model with random values that are drawn on the device itself, which takes no time.

    Standard deviations are about those of training, so that routers choose all experts alike.
    """
    with torch.device(device):
        model = uninitialised_model(spec)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scale" in name:
                parameter.fill_(1.0)
            elif "bias" in name:
                parameter.zero_()
            else:
                parameter.normal_(0.0, parameter.shape[-2] ** -0.5, generator=generator)
    return model


def warm(job: Job, device: torch.device) -> Iterator[Row]:
    """Train one layer for a step, which compiles the kernels that a step launches."""
    spec = step_spec({**job.values, "n_layers": 1, "micro_batch": 1})
    with _settings(job.values["mode"], device):
        _Trainer(spec, device, job.values["mode"]).step()
    wait_for(device)
    yield Row(stage=job.stage, case=job.case, outcome="passed")


def warm_compiled(job: Job, device: torch.device) -> Iterator[Row]:
    """Compile a whole model, at its size and batch, into the compiler's cache.

    Other processes do the like at the same time, so that it is left out where memory is short.
    """
    spec = step_spec(job.values)
    placed = _placed(spec, hardware_of(job.values["facts"]))
    free_bytes = torch.cuda.mem_get_info(device)[0]
    if placed is None or placed.peak_mem_bytes > _SHARED * free_bytes:
        note = "left to the steps: too little memory to do it beside others"
        yield Row(stage=job.stage, case=job.case, outcome="skipped", note=note)
        return
    with _settings(job.values["mode"], device):
        _Trainer(spec, device, job.values["mode"]).compile()
    yield Row(stage=job.stage, case=job.case, outcome="passed")


def measure_step(job: Job, device: torch.device) -> Iterator[Row]:
    """Yield milliseconds of a step and its parts, and its memory, against the estimate.

    A micro-batch that is not expected to fit, or does not, is halved.
    """
    hardware = hardware_of(job.values["facts"])
    micro_batch = _fitting(job.values, hardware)
    while micro_batch:
        spec = step_spec({**job.values, "micro_batch": micro_batch})
        try:
            yield from _measured(job, spec, hardware, device)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            note = f"out of memory with {micro_batch} sequences at a time, halved"
        yield Row(stage=job.stage, case=job.case, outcome="skipped", note=note)
        free_memory(device)
        micro_batch //= 2
    note = "one sequence does not fit the memory"
    yield Row(stage=job.stage, case=job.case, outcome="skipped", note=note)


def _fitting(values: Mapping[str, Any], hardware: Hardware) -> int:
    """Return the largest micro-batch, asked for or a half of it, that is estimated to fit."""
    micro_batch: int = values["micro_batch"]
    while micro_batch > 1 and not _placed(
        step_spec({**values, "micro_batch": micro_batch}), hardware
    ):
        micro_batch //= 2
    return micro_batch


def _placed(spec: RunSpec, hardware: Hardware) -> PlacementEstimate | None:
    """Return the placement of the whole batch at once on one device; None: it does not fit."""
    placed = choose_placement(spec, hardware, 1)
    whole = placed.fits and placed.grad_accum == 1 and not placed.checkpointing
    return placed if whole else None


def predicted_parts(
    spec: RunSpec, hardware: Hardware, placed: PlacementEstimate, mode: Mapping[str, Any]
) -> dict[str, float]:
    """Return seconds by part of what a plan's estimate comes to in a mode.

    The estimate is of a compiled step with the head in TF32: without the compiler elementwise
    operators move all that they were counted to, and another head multiplies at another rate.
    """
    rates = dict(hardware.matmul_flops_per_s)
    rates["tf32"] = rates.get(mode["head"], rates["fp32"])
    hardware = dataclasses.replace(hardware, matmul_flops_per_s=rates)
    by_part = dict.fromkeys(PARTS, 0.0)
    for name, seconds in estimate_step(model_shape(spec), hardware, placed).parts.items():
        if name == "elementwise" and not mode.get("compile"):
            seconds /= FUSED_SHARE
        by_part[part_of_estimate(name)] += seconds
    return by_part


def _measured(job: Job, spec: RunSpec, hardware: Hardware, device: torch.device) -> Iterator[Row]:
    placed = _placed(spec, hardware) or choose_placement(spec, hardware, 1)
    mode = job.values["mode"]
    by_part = predicted_parts(spec, hardware, placed, mode)
    note = f"{spec.batch_size} × {spec.seq_len} tokens"

    def row(what: str, measured: float | None, predicted: float | None, unit: str = "ms") -> Row:
        return Row(
            stage=job.stage,
            case=job.case,
            what=what,
            unit=unit,
            predicted=predicted,
            measured=measured,
            note=note,
        )

    with _settings(mode, device):
        trainer = _Trainer(spec, device, mode)
        if mode.get("compile"):
            begin = time.perf_counter()
            trainer.compile()
            yield row("compiling", 1e3 * (time.perf_counter() - begin), None)
        if device.type == "cuda":
            # Comparing the compiled model takes more than training it.
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(job.values["num_warm_up"]):
            trainer.step()
        step_s = statistics.median(trainer.step() for _ in range(job.values["num_steps"]))
        yield row("step", 1e3 * step_s, 1e3 * sum(by_part.values()))
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
            yield row("peak memory", peak / 1e9, placed.peak_mem_bytes / 1e9, "GB")
        found = seconds_by_part(trainer.step, trainer.model, spec, device)
    if not found:
        yield dataclasses.replace(
            row("parts", None, None), outcome="skipped", note="the profiler saw no kernels"
        )
        return
    # What no kernel accounts for: launches that the device waits for.
    found["overhead"] = max(0.0, step_s - sum(found.values()))
    for part in PARTS:
        yield row(part, 1e3 * found.get(part, 0.0), 1e3 * by_part[part])


def free_memory(device: torch.device) -> None:
    """Give memory back to the device: what is compiled holds on to its model until then."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _settings(mode: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(multiplying_in_tf32(mode["head"] != "fp32"))
        stack.enter_context(_kernels(device))
        yield


def _kernels(device: torch.device) -> AbstractContextManager[None]:
    """Return a context with the kernels that a GPU takes by itself; a rehearsal interprets them."""
    return use_implementation("triton") if device.type == "cpu" else contextlib.nullcontext()


class _Trainer:
    """A model, its optimizer and one batch, of which every step is made."""

    def __init__(self, spec: RunSpec, device: torch.device, mode: Mapping[str, Any]) -> None:
        self._spec = spec
        self._device = device
        self._recipe = get_recipe(spec.recipe)
        self.model = made_model(spec, device)
        self.model.head_in_bf16 = mode["head"] == "bf16"
        self._optimizer = recipe_adamw(self.model, self._recipe)
        set_learning_rate(self._optimizer, _LEARNING_RATE)
        self._batch = rank_batch(made_batch(spec)).to(device)

    def compile(self) -> None:
        """Compile the model.

        Raises:
            RuntimeError: it does not work here, or computes something else.
        """
        found = compile_model(self.model, self._batch, precision=self._spec.precision)
        if isinstance(found, NotCompiled):
            raise RuntimeError(found.reason)

    def step(self) -> float:
        """Make a step and return its seconds."""
        wait_for(self._device)
        begin = time.perf_counter()
        gradients_of_batch(
            self.model,
            self._batch,
            clip_norm=self._recipe.clip_norm,
            precision=self._spec.precision,
        )
        self._optimizer.step()
        wait_for(self._device)
        return time.perf_counter() - begin
