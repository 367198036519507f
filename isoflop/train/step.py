"""The gradients of one batch, whole or in micro-batches, on one rank or several; torch.compile.

Letters: B sequences of the global batch, R of this rank's share, T tokens.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isoflop.data.tokenizers import PAD_ID
from isoflop.data.windows import Tokens
from isoflop.families._shared.module import cast_once
from isoflop.train.batch import Batch, rank_batch
from isoflop.train.optimizer import clip_gradients
from isoflop.train.ranks import SINGLE, Ranks

logger = logging.getLogger("isoflop")

BACKEND = "inductor"
"""Of torch.compile."""


class StepGradients(NamedTuple):
    """What the backward pass of one step reports; the gradients themselves are in the model."""

    loss: float
    """Nats per target of the global batch."""
    grad_norm: float
    """Of the global batch's gradients, before clipping."""


def gradients_of_batch(
    model: nn.Module,
    batch: Tokens | Batch,
    *,
    clip_norm: float | None,
    precision: str,
    ranks: Ranks = SINGLE,
    micro_batch: int | None = None,
) -> StepGradients:
    """Set the clipped gradients of the global batch's mean loss.

    However the batch is split, each part contributes its summed loss divided by the number of
    targets of the whole global batch, so that the split changes the order of sums and nothing
    else, also where parts differ in size or in padding.

    Args:
        model: a Transformer, or what ``ranks`` wrapped it in.
        batch: targets [B, T] of the global batch, the same on every rank; or what
            :func:`rank_batch` makes of them.
        clip_norm: limit of the gradients' norm; None: no limit.
        precision: ``fp32`` or ``bf16``.
        ranks: the processes that share the batch; all of them call this together.
        micro_batch: sequences that this rank takes through the model at a time; None: its share.

    Raises:
        UserError: the batch does not split evenly over the ranks.
    """
    device = next(model.parameters()).device
    if not isinstance(batch, Batch):
        batch = rank_batch(batch, ranks)
    batch = batch.to(device)
    model.zero_grad(set_to_none=True)
    divisor = batch.num_targets / ranks.loss_scale()
    losses = []
    parts = list(batch.split(micro_batch))
    with tables_cast(model, precision):
        for number, (inputs_RT, targets_RT) in enumerate(parts, start=1):
            with nothing_shared(model) if number < len(parts) else contextlib.nullcontext():
                with compute_type(precision, device):
                    loss = model(inputs_RT, targets_RT) / divisor
                loss.backward()
            losses.append(loss.detach())
    total = _mean_loss(losses, batch, ranks)
    parameters = list(model.parameters())
    norm = float(ranks.grad_norm(parameters))
    clip_gradients([p.grad for p in parameters if p.grad is not None], norm, clip_norm)
    return StepGradients(total, norm)


def nothing_shared(model: nn.Module) -> AbstractContextManager[object]:
    """Keep gradients on their rank: the last micro-batch shares those of all at once.

    Only DDP knows how; sharded gradients are summed over the ranks each time, which is what keeps
    them sharded.
    """
    no_sync = getattr(model, "no_sync", contextlib.nullcontext)
    context: AbstractContextManager[object] = no_sync()
    return context


def _mean_loss(losses: list[Tensor], batch: Batch, ranks: Ranks) -> float:
    """Return the mean loss of the global batch. Sequences that several ranks repeat count once."""
    share = sum(loss.item() for loss in losses) / ranks.loss_scale()
    if ranks.size == 1:
        return share
    own_targets = int((batch.targets_RT != PAD_ID).sum())
    total, targets = ranks.sum([share, own_targets])
    return total * batch.num_targets / targets


def compute_type(precision: str, device: torch.device) -> torch.autocast:
    """Return a context in which the model computes in `fp32`, or in `bf16` by autocast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def tables_cast(model: nn.Module, precision: str) -> AbstractContextManager[None]:
    """Return a context with the experts' tables as `precision` reads them, cast once."""
    return cast_once(model, torch.bfloat16 if precision == "bf16" else None)


class Compiled(NamedTuple):
    """What torch.compile took of a model."""

    share: float
    """Of the parameters, those that its graphs compute with."""
    num_graphs: int
    num_breaks: int
    outside: tuple[str, ...]
    """Modules that hold parameters which no graph computes with."""
    operators: tuple[str, ...]
    """Operators of the project in the graphs: they are called, and not compiled."""


class _Backend:
    """The compiler behind torch.compile; it notes the graphs that it is given."""

    def __init__(self) -> None:
        self.num_graphs = 0
        self.parameters: set[int] = set()
        self.operators: set[str] = set()

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.num_graphs += 1
        self.parameters |= {id(each) for each in inputs if isinstance(each, nn.Parameter)}
        # What is checkpointed, or has a gradient of its own, is a graph in the graph.
        for part in graph.modules():
            for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                name = getattr(node.target, "name", str)()
                if name.startswith("isoflop"):
                    self.operators.add(name)
        from torch._dynamo import lookup_backend  # whoever calls this has imported it

        compiled: Callable[..., Any] = lookup_backend(BACKEND)(graph, inputs)
        return compiled


def compile_model(model: nn.Module, inputs_BT: Tensor, *, precision: str) -> Compiled | None:
    """Compile ``model`` in place, its names and parameters unchanged, and try it out.

    A forward and a backward pass over ``inputs_BT`` compile for its shape here, not in the first
    step. Whatever goes wrong in them (no compiler, an operator that the compiler does not know),
    the model is left as it was.

    Fused operators round differently, so losses differ from the uncompiled model's in their last
    digits. On the CPU it hardly helps: see tests/benchmarks/README.md.

    Args:
        model: a Transformer on its device, before it is wrapped for several ranks.
        inputs_BT: int64 token ids of the shape that the steps will have, on the device.
        precision: ``fp32`` or ``bf16``.

    Returns:
        What is compiled now, with a warning where it is not the whole model; None: nothing is.
    """
    backend = _Backend()
    breaks_before = _num_breaks()
    # An attribute of the instance, found before the class's method.
    compiled = torch.compile(model.forward, dynamic=False, backend=backend)
    setattr(model, "forward", compiled)  # noqa: B010
    try:
        # torch's own notices on what it traces through.
        with warnings.catch_warnings(action="ignore"):
            with tables_cast(model, precision), compute_type(precision, inputs_BT.device):
                # Not the same tensor twice: the steps' inputs and targets are two.
                loss = model(inputs_BT, inputs_BT.clone())
            loss.backward()
    except Exception as error:
        del model.forward
        if isinstance(error, torch.OutOfMemoryError):
            raise
        lines = str(error).strip().splitlines()
        message = f"{type(error).__name__}: {lines[0] if lines else ''}"
        logger.warning("torch.compile does not work here, going on without it: %s", message)
        return None
    finally:
        model.zero_grad(set_to_none=True)
    return _what_was_compiled(model, backend, _num_breaks() - breaks_before)


def _num_breaks() -> int:
    """Return in how many places the compiler has broken a graph, in this process."""
    # Slow to import; torch.compile does where it is used.
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else utils.counters["graph_break"].total()


def _what_was_compiled(model: nn.Module, backend: _Backend, num_breaks: int) -> Compiled:
    held = {id(p): p.numel() for p in model.parameters()}
    outside = tuple(
        name or "the model itself"
        for name, module in model.named_modules()
        if any(id(p) not in backend.parameters for p in module.parameters(recurse=False))
    )
    taken = sum(number for key, number in held.items() if key in backend.parameters)
    compiled = Compiled(
        share=taken / sum(held.values()),
        num_graphs=backend.num_graphs,
        num_breaks=num_breaks,
        outside=outside,
        operators=tuple(sorted(backend.operators)),
    )
    if outside or num_breaks:
        logger.warning(
            "torch.compile took %.0f %% of the model's parameters, in %d graphs with %d breaks; "
            "outside: %s",
            100 * compiled.share,
            compiled.num_graphs,
            num_breaks,
            ", ".join(outside) or "no module",
        )
    return compiled
