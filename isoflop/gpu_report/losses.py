"""A short training by Triton's kernels against the same by plain torch: do the losses agree?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from isoflop.gpu_report.records import Job, Row
from isoflop.gpu_report.steps import step_spec
from isoflop.model.transformer import build_model
from isoflop.recipe import get_recipe
from isoflop.resources import builtin, builtin_names
from isoflop.train.batch import rank_batch
from isoflop.train.optimizer import recipe_adamw, set_learning_rate
from isoflop.train.step import gradients_of_batch
from isoflop_kernels import use_implementation

MULTIPLE = 3.0
"""Of the difference between two paths of plain torch, what a third path may differ by."""
EARLY_STEPS = 10
"""In which no choice of experts falls out otherwise yet; on the CPU the first did after 20."""
# Relative. A few roundings of a loss (2e-7 was measured on the CPU between `bag`, `reference` and
# `cpp`), in bf16 what one step's loss differed by (isoflop.train.compiled).
EARLY = {"fp32": 1e-6, "bf16": 2e-3}
# Measured on the CPU between the same three over a hundred steps.
LATE = {"fp32": 8e-3, "bf16": 1.7e-2}
_SHOWN_STEPS = (1, 3, EARLY_STEPS, 30, 100)


def compare_losses(job: Job, device: torch.device) -> Iterator[Row]:
    """Yield losses of one training by `bag` (as predicted) and by `triton` (as measured).

    Sums in another order change which experts are chosen, and a hundred steps lead away from each
    other by nearly a percent on the CPU, whichever paths are compared. So `reference`, plain torch
    as well, is held against `bag`, too: Triton may differ by MULTIPLE of that, or of what was
    measured on the CPU.
    """
    precision, num_steps = job.values["precision"], job.values["num_steps"]
    text = _text()
    found = {
        name: _losses(job.values, name, device, text) for name in ("bag", "triton", "reference")
    }
    shown = [number for number in _SHOWN_STEPS if number <= num_steps]
    for number in shown:
        yield Row(
            stage=job.stage,
            case=job.case,
            what=f"loss of step {number}",
            unit="nats",
            predicted=found["bag"][number - 1],
            measured=found["triton"][number - 1],
        )
    for number in shown:
        bag, triton, reference = (found[name][:number] for name in ("bag", "triton", "reference"))
        usual, actual = largest_difference(reference, bag), largest_difference(triton, bag)
        least = (EARLY if number <= EARLY_STEPS else LATE)[precision]
        limit = MULTIPLE * max(usual, least)
        yield Row(
            stage=job.stage,
            case=job.case,
            what=f"largest relative difference, {number} steps",
            measured=actual,
            outcome="passed" if actual <= limit < math.inf else "failed",
            note=f"limit {limit:.2g}; two paths of plain torch differ by {usual:.2g}",
            details=found if number == num_steps else {},
        )


def largest_difference(actual: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference; infinite where a loss is not finite."""
    differences = [abs(a - b) / abs(b) for a, b in zip(actual, expected, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def _losses(
    values: Mapping[str, Any], implementation: str, device: torch.device, text: bytes
) -> list[float]:
    """Return the loss of every step: the same model, batches and rates for any implementation."""
    spec = step_spec(values)
    recipe = get_recipe(spec.recipe)
    model = build_model(spec).to(device)
    optimizer = recipe_adamw(model, recipe)
    found = []
    with use_implementation(implementation):
        for step in range(values["num_steps"]):
            # A linear warm-up, without which one step may undo the model.
            set_learning_rate(optimizer, recipe.peak_lr * min(1.0, (step + 1) / 10))
            batch = rank_batch(_batch(text, step, (spec.batch_size, spec.seq_len)))
            gradients = gradients_of_batch(
                model, batch, clip_norm=recipe.clip_norm, precision=spec.precision
            )
            optimizer.step()
            found.append(gradients.loss)
    return found


def _text() -> bytes:
    """Return some text of the embedded corpus."""
    folder = builtin("corpora", builtin_names("corpora")[0])
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.txt"))[:4])


def _batch(text: bytes, step: int, shape: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return windows of the text that a seed and the step's number choose, as bytes and 4."""
    num_sequences, length = shape
    starts = np.random.default_rng([0, step]).integers(0, len(text) - length, num_sequences)
    values = np.frombuffer(text, np.uint8).astype(np.uint32)
    # The first numbers are those of padding and of begin and end of a text.
    return np.stack([values[start : start + length] for start in starts]) + 4
