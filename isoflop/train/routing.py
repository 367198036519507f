"""Which experts a model uses, by layer and channel: in a step, or on the held-out set.

Choices are counted over all sequences together, and figures are taken of the sums. The mean of
figures of single sequences would be another quantity and a wrong one: a sequence has too few tokens
to touch most experts and leans on those of its own topic, so a table that the text as a whole uses
evenly would look collapsed (entropy is concave: the mean of the sequences' entropies is at most
that of their sum).

Letters: L layers, B sequences, T tokens, C channels, K experts chosen per channel, E experts a
channel chooses from.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoflop.families import Routing, get_routing
from isoflop.spec import RunSpec
from isoflop.train.ranks import Ranks

# Steps of a run whose usage is logged, about.
LOGGED_STEPS = 50


def is_logged(step: int, steps: int) -> bool:
    """Return whether the usage of a step (from 0) of ``steps`` is logged; the last always is."""
    return step % max(1, steps // LOGGED_STEPS) == 0 or step == steps - 1


def gated_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that choose experts, one per layer, in order; empty for a dense model."""
    return [module for module in model.modules() if hasattr(module, "gates")]


def usage_recorder(model: nn.Module, spec: RunSpec) -> UsageRecorder | None:
    """Return what counts the experts of a model; None where its family states no routing."""
    modules, routing = gated_modules(model), get_routing(spec.family, spec.config)
    return None if not modules or routing is None else UsageRecorder(modules, routing)


class UsageRecorder:
    """Counts chosen experts through the layers' `gates` hooks, while it is recording."""

    def __init__(self, modules: Sequence[nn.Module], routing: Routing) -> None:
        self.shared = routing.shared
        self._modules = modules
        self._shape = (len(modules), routing.num_channels, routing.num_experts)
        self._weight_T: Tensor | None = None
        self._counts: list[Tensor] | None = None
        # Made once, so that a compiler that takes them in meets the same ones at every logged step.
        self._hooks = [self._hook(layer) for layer in range(len(self._modules))]

    def _hook(self, layer: int) -> Callable[[Tensor, Tensor], None]:
        def count(idx_TCK: Tensor, score_TCK: Tensor) -> None:
            # Activation checkpointing runs a layer again in the backward pass.
            if torch._C._current_graph_task_id() == -1:
                self._count(layer, idx_TCK)

        return count

    def _count(self, layer: int, idx_TCK: Tensor) -> None:
        _, num_channels, num_experts = self._shape
        if self._counts is None:
            zeros = torch.zeros(num_channels * num_experts, dtype=torch.int64)
            self._counts = [zeros.to(idx_TCK.device, copy=True) for _ in self._modules]
        first_C1 = torch.arange(num_channels, device=idx_TCK.device)[:, None] * num_experts
        weight = torch.ones_like(idx_TCK, dtype=torch.int64)
        if self._weight_T is not None:
            weight = weight * self._weight_T[:, None, None]
        self._counts[layer].index_add_(0, (idx_TCK + first_C1).flatten(), weight.flatten())

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Count what runs forward inside, from zero; earlier hooks rest meanwhile."""
        self._counts = self._weight_T = None
        before = [module.gates for module in self._modules]
        for module, hook in zip(self._modules, self._hooks, strict=True):
            module.gates = hook  # type: ignore[assignment]
        try:
            yield
        finally:
            for module, hook_before in zip(self._modules, before, strict=True):
                module.gates = hook_before

    def count_only(self, counted_BT: Tensor) -> None:
        """Count only the tokens marked True, of the next forward passes."""
        self._weight_T = counted_BT.flatten().long()

    def take(self, ranks: Ranks) -> NDArray[np.int64]:
        """Return how often each expert was chosen, all ranks together: [L, C, E]."""
        if self._counts is None:
            counts = np.zeros(self._shape, dtype=np.int64)
        else:
            counts = torch.stack(self._counts).cpu().numpy().reshape(self._shape)
        if ranks.size > 1:
            total = np.array(ranks.sum(counts.ravel().tolist()))
            counts = total.astype(np.int64).reshape(self._shape)
        return counts


class EverUsed:
    """The experts that were chosen in any logged step of the training so far.

    A lower bound of those ever chosen: steps that are not logged are not looked at.
    """

    def __init__(self) -> None:
        self.used_LCE: NDArray[np.bool_] | None = None

    def add(self, counts_LCE: NDArray[np.int64]) -> None:
        """Add a step's choices."""
        used_LCE = counts_LCE > 0
        self.used_LCE = used_LCE if self.used_LCE is None else self.used_LCE | used_LCE

    def state(self) -> dict[str, Any]:
        """Return all of it, as JSON values: the shape, and a bit for each expert."""
        if self.used_LCE is None:
            return {"shape": None, "bits": ""}
        bits = base64.b64encode(np.packbits(self.used_LCE).tobytes()).decode("ascii")
        return {"shape": list(self.used_LCE.shape), "bits": bits}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        if state["shape"] is None:
            self.used_LCE = None
            return
        packed = np.frombuffer(base64.b64decode(state["bits"]), dtype=np.uint8)
        bits = np.unpackbits(packed, count=math.prod(state["shape"]))
        self.used_LCE = bits.astype(bool).reshape(state["shape"])


def usage_rows(
    counts_LCE: NDArray[np.int64], ever_used: EverUsed, *, shared: bool
) -> list[dict[str, Any]]:
    """Return a row per channel of each layer and, where there are several, one of all together.

    All channels have one table of E experts where it is ``shared``, else C · E experts. ``channel``
    is None for them. For the other keys, see :func:`usage_figures`; ``ever_used`` is a share too.
    """
    used_LCE = ever_used.used_LCE
    if used_LCE is None:
        used_LCE = np.zeros(counts_LCE.shape, dtype=bool)
    rows = []
    for layer, (counts_CE, used_CE) in enumerate(zip(counts_LCE, used_LCE, strict=True)):
        tables = [*enumerate(zip(counts_CE, used_CE, strict=True))]
        if len(counts_CE) > 1:
            whole = (counts_CE.sum(0), used_CE.any(0)) if shared else (counts_CE, used_CE)
            tables.append((None, whole))  # type: ignore[arg-type]
        for channel, (counts, used) in tables:
            figures = usage_figures(counts.ravel())
            ever = float(used.mean())
            rows.append({"layer": layer, "channel": channel, **figures, "ever_used": ever})
    return rows


def usage_figures(counts_E: NDArray[np.int64]) -> dict[str, Any]:
    """Return how evenly experts are used.

    ``num_experts``; ``num_choices``, the sum of the counts; ``fraction_used``, the share of experts
    with any; ``entropy`` of the choices divided by log(E), from 0 (one expert) to 1 (all alike);
    ``cv``, the standard deviation of the counts over their mean. With few choices for each expert
    even a uniform random choice leaves some out: its expected cv is sqrt(E / num_choices). None
    where there is no choice, or one expert.
    """
    total = int(counts_E.sum())
    figures: dict[str, Any] = {
        "num_experts": len(counts_E),
        "num_choices": total,
        "fraction_used": float((counts_E > 0).mean()) if total else None,
        "entropy": None,
        "cv": None,
    }
    if total and len(counts_E) > 1:
        share = counts_E[counts_E > 0] / total
        # Rounding alone can leave -0.0 or a hair above 1.
        entropy = float(-(share * np.log(share)).sum() / math.log(len(counts_E)))
        figures["entropy"] = min(1.0, max(0.0, entropy))
        figures["cv"] = float(counts_E.std() / counts_E.mean())
    return figures
