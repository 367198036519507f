"""torch.compile of a run's model, believed where it agrees with the model that is not compiled.

A compiler that drops a gradient says nothing: the run goes on, and ends a little worse (torch 2.11
did so to queries and keys). Hence the first thing that a compiled model computes is compared, loss
and every gradient, on the device and at the shape of the run.

Letters: R sequences that go through the model at a time, T tokens.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isoflop.spec import RunSpec
from isoflop.train.batch import Batch, made_batch, rank_batch
from isoflop.train.ranks import SINGLE, Ranks
from isoflop.train.routing import gated_modules
from isoflop.train.step import StepGradients, adds_in_place, gradients_of_batch

logger = logging.getLogger("isoflop")

BACKEND = "inductor"
"""Of torch.compile."""

# By how much two right results differ, measured on the CPU for all families, with two and eight
# layers, by halving the inner axis of every product (tests/train/test_compiled.py repeats it for
# small models). Gradients of a parameter, relative to their norm: up to 3e-6 in fp32. In bf16 the
# experts that are chosen change, and with them up to 0.8 of a router's gradient, so that there is
# no constant: the yardstick is how far the gradient of the uncompiled model in bf16 is from that in
# fp32, and two orders of summing differed by 2.1 times that at most.
GRADIENT_TOLERANCE = 0.01
"""Of a gradient's norm: what a choice of experts in ten thousand does that falls out otherwise."""
NOISE_MULTIPLE = 3.0
"""Of the distance between the uncompiled model's gradients in the run's precision and in fp32."""
LENGTH_FACTOR = 1.5
"""Between the norms of the two gradients, whatever the noise."""
# Measured: 8e-8 and 2e-3.
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""Relative, by precision."""
NUM_PARTS = 8
"""In which the uncompiled model takes what the compiled one takes at a time: it needs more memory
for a sequence."""
NUM_NAMED = 3
"""Parameters that a warning names."""


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


class NotCompiled(NamedTuple):
    """Why a model stays as it is."""

    reason: str


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


def compile_model(
    model: nn.Module, batch: Batch, *, precision: str, in_place: bool = False
) -> Compiled | NotCompiled:
    """Compile ``model`` in place, its names and parameters unchanged, and compare it.

    A forward and a backward pass over ``batch`` compile for its shape here, not in the first step.
    Where something goes wrong in them (no compiler, an operator that the compiler does not know),
    or the loss or a gradient is another than the uncompiled model's, the model is left as it was,
    with a warning. What was not compared is not used: without gradients, with another number of
    sequences, and while a layer's ``gates`` are set, the model runs uncompiled.

    Fused operators round differently, so losses differ from the uncompiled model's in their last
    digits. On the CPU it hardly helps: see tests/benchmarks/README.md.

    A layout that changes the model afterwards, as fsdp and channel do, has it compiled again, and
    nobody compares that: see COMPILED_LAYOUTS in isoflop.placement.

    Memory: one copy of the gradients, on the CPU if the model is on a GPU. The optimizer's moments,
    twice as large, are not there yet.

    Args:
        model: a Transformer on its device, before it is wrapped for several ranks.
        batch: sequences that the steps take through the model at a time.
        precision: ``fp32`` or ``bf16``.
        in_place: whether the steps add gradients of experts' tables in place, which is another
            graph: see :func:`isoflop.train.step.adds_in_place`.

    Returns:
        What is compiled now, with a warning where it is not the whole model; or why nothing is.
    """
    expected = _Expected(model, batch, precision)
    backend = _Backend()
    breaks_before = _num_breaks()
    compiled = torch.compile(model.forward, dynamic=False, backend=backend)
    forward = _where_compared(compiled, model, batch.inputs_RT.shape)
    # An attribute of the instance, found before the class's method.
    setattr(model, "forward", forward)  # noqa: B010
    try:
        # torch's own notices on what it traces through.
        with warnings.catch_warnings(action="ignore"):
            found = gradients_of_batch(
                model, batch, clip_norm=None, precision=precision, in_place=in_place
            )
        reason = expected.disagreement(model, found)
        doubt = "torch.compile computes something else here, going on without it: %s"
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            not_compiled(model)
            raise
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
        doubt = "torch.compile does not work here, going on without it: %s"
    finally:
        model.zero_grad(set_to_none=True)
    if reason is not None:
        not_compiled(model)
        logger.warning(doubt, reason)
        return NotCompiled(reason)
    return _what_was_compiled(model, backend, _num_breaks() - breaks_before)


def compared_part(
    spec: RunSpec, micro_batch: int | None, ranks: Ranks = SINGLE
) -> tuple[Batch, bool]:
    """Return made tokens as a rank takes them through the model at a time, for `compile_model`.

    With them, whether the steps of the run add gradients of tables in place.

    Args:
        spec: the run.
        micro_batch: sequences at a time; None, or more than a rank's share: its share.
        ranks: the processes that share the batch.
    """
    share = spec.batch_size // ranks.size
    rows = min(micro_batch or share, share)
    return rank_batch(made_batch(spec)[:rows]), adds_in_place(-(-share // rows), ranks)


def not_compiled(model: nn.Module) -> None:
    """Leave a model that :func:`compile_model` compiled as it was before."""
    del model.forward


def _where_compared(
    compiled: Callable[..., Tensor], model: nn.Module, shape_RT: torch.Size
) -> Callable[..., Tensor]:
    """Return a forward that is ``compiled`` for losses with gradients of that shape, else plain.

    It is plain while somebody asks which experts are chosen, too: the graph would break at every
    layer, and be compiled again afterwards.
    """
    plain, layers = model.forward, gated_modules(model)

    def forward(inputs_BT: Tensor, *args: Any, **options: Any) -> Tensor:
        as_compared = torch.is_grad_enabled() and inputs_BT.shape == shape_RT
        as_compared = as_compared and all(layer.gates is None for layer in layers)
        if as_compared and len(args) == 1 and not options:
            return compiled(inputs_BT, *args)
        result: Tensor = plain(inputs_BT, *args, **options)
        return result

    return forward


def _gradients(model: nn.Module, batch: Batch, precision: str, micro_batch: int) -> StepGradients:
    return gradients_of_batch(
        model, batch, clip_norm=None, precision=precision, micro_batch=micro_batch
    )


class _Expected:
    """Loss and gradients of the uncompiled model, and how far rounding moves them."""

    def __init__(self, model: nn.Module, batch: Batch, precision: str) -> None:
        self._precision = precision
        size = max(1, len(batch.inputs_RT) // NUM_PARTS)
        self._loss = _gradients(model, batch, "fp32", size).loss
        self._exact = {name: _on_cpu(p.grad) for name, p in model.named_parameters()}
        if precision != "fp32":
            self._loss = _gradients(model, batch, precision, size).loss
        self._norms, self._noise = {}, {}
        for name, parameter in model.named_parameters():
            self._norms[name] = _norm(parameter.grad)
            self._noise[name] = _distance(parameter.grad, self._exact[name])
        model.zero_grad(set_to_none=True)

    def disagreement(self, model: nn.Module, found: StepGradients) -> str | None:
        """Return where the gradients in the model, or the loss, are others; None: nowhere."""
        wrong = []
        if not abs(found.loss - self._loss) <= LOSS_TOLERANCE[self._precision] * abs(self._loss):
            wrong.append(f"the loss is {found.loss:.6g}, not {self._loss:.6g}")
        misses = {name: self._miss(name, p.grad) for name, p in model.named_parameters()}
        worst = sorted((n for n in misses if misses[n] > 1), key=lambda n: -misses[n])
        for name in worst[:NUM_NAMED]:
            gradient, expected = model.get_parameter(name).grad, self._norms[name]
            off = _distance(gradient, self._exact[name])
            wrong.append(
                f"the gradient of {name} is {off:.3g} off, its norm {_norm(gradient):.4g} and not "
                f"{expected:.4g}"
            )
        if len(worst) > NUM_NAMED:
            wrong.append(f"and those of {len(worst) - NUM_NAMED} more parameters")
        return "; ".join(wrong) or None

    def _miss(self, name: str, gradient: Tensor | None) -> float:
        """Return how far off a gradient is, in units of what is allowed."""
        exact = self._exact[name]
        norm, expected = _norm(gradient), self._norms[name]
        if not LENGTH_FACTOR * norm >= expected or not norm <= LENGTH_FACTOR * expected:
            return float("inf")
        allowed = NOISE_MULTIPLE * self._noise[name] + GRADIENT_TOLERANCE * _norm(exact)
        distance = _distance(gradient, exact)
        return distance / allowed if distance else 0.0


def _on_cpu(gradient: Tensor | None) -> Tensor | None:
    """Return the gradient itself, which is set anew and not written over; from a GPU a copy."""
    return None if gradient is None else gradient.cpu()


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient))


def _distance(gradient: Tensor | None, exact: Tensor | None) -> float:
    if gradient is None or exact is None:
        return _norm(gradient) + _norm(exact)
    return _norm(gradient - exact.to(gradient.device))


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
