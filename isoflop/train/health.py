"""Whether a run is sound: what is not finite, where the loss jumps, which experts are used."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from isoflop.data.tokenizers import PAD_ID
from isoflop.spec import RunSpec
from isoflop.train.ranks import SINGLE, Ranks
from isoflop.train.routing import EverUsed, is_logged, usage_recorder, usage_rows

# A spike is a loss that exceeds the median of the SPIKE_WINDOW before it by more than SPIKE_SIGMAS
# of their spread and by more than SPIKE_NATS. The spread is 1.4826 × the median absolute deviation,
# which is the standard deviation of normal noise and hardly changes with a few outliers. Nothing is
# reported before there are SPIKE_MIN_LOSSES.
SPIKE_WINDOW = 64
SPIKE_MIN_LOSSES = 16
SPIKE_SIGMAS = 6.0
SPIKE_NATS = 0.1
_SIGMA_PER_DEVIATION = 1.4826


def check(
    step: int, loss: float, grad_norm: float, model: nn.Module, ranks: Ranks = SINGLE
) -> str | None:
    """Return why training cannot go on after the gradients of ``step``; None where all is finite.

    Args:
        step: from 0.
        loss: of the global batch.
        grad_norm: of the global batch's gradients, which ``model`` holds.
        model: asked for the first parameter whose gradient is not finite, if the norm is not.
        ranks: the processes that share the run; they are given the same numbers.
    """
    if not math.isfinite(loss):
        return f"non-finite loss at step {step}"
    if math.isfinite(grad_norm):
        return None
    name = _first_not_finite(model, ranks)
    what = "each gradient is finite, the norm overflows" if name is None else f"first in {name}"
    return f"non-finite gradient norm at step {step}: {what}"


def _first_not_finite(model: nn.Module, ranks: Ranks) -> str | None:
    parameters = list(model.named_parameters())
    bad = ranks.sum([float(_is_bad(parameter.grad)) for _, parameter in parameters])
    names = [name for (name, _), count in zip(parameters, bad, strict=True) if count]
    # DDP puts its own word before a name.
    return names[0].removeprefix("module.") if names else None


def _is_bad(grad: Tensor | None) -> bool:
    if grad is None:
        return False
    # A rank looks at its own part of a gradient that is split.
    own = grad.to_local() if hasattr(grad, "to_local") else grad
    return not bool(own.isfinite().all())


class SpikeDetector:
    """Finds losses that jump; see SPIKE_WINDOW for the rule."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self._in_spike = False

    def see(self, loss: float) -> dict[str, float] | None:
        """Add a step's loss; return its figures at the first step of a spike, else None."""
        figures = self._figures(loss)
        self._losses.append(loss)
        begins = figures is not None and not self._in_spike
        self._in_spike = figures is not None
        return figures if begins else None

    def _figures(self, loss: float) -> dict[str, float] | None:
        if len(self._losses) < SPIKE_MIN_LOSSES:
            return None
        median = statistics.median(self._losses)
        if loss <= median + SPIKE_NATS:
            return None
        deviation = statistics.median(abs(value - median) for value in self._losses)
        limit = median + max(SPIKE_SIGMAS * _SIGMA_PER_DEVIATION * deviation, SPIKE_NATS)
        return {"loss": loss, "median": median, "limit": limit} if loss > limit else None

    def state(self) -> dict[str, Any]:
        """Return what the next answers depend on, as JSON values."""
        return {"losses": list(self._losses), "in_spike": self._in_spike}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._losses = deque(state["losses"], maxlen=SPIKE_WINDOW)
        self._in_spike = state["in_spike"]


class Monitor:
    """Watches one run for spikes and the use of experts; an accumulator of the training state.

    Events, on the main rank: `spike` (step, loss, median, limit) and `usage` (step, split, rows;
    see isoflop.train.routing). All ranks call all methods. Steps whose usage is not logged run as
    without a monitor.

    Which steps are logged depends on a run's number of steps. What others will have logged of the
    steps that they have in common with this run is gathered, too, for each of them by itself.

    Args:
        model: asked for its choices of experts.
        spec: the run.
        on_event: called with a kind and its values.
        ranks: the processes that share the run.
        others: by the steps of another run: how many of its first steps are this run's, too.
        on_usage_of: called with the steps of another run and the values of its event `usage`.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: RunSpec,
        *,
        on_event: Callable[[str, dict[str, Any]], None],
        ranks: Ranks = SINGLE,
        others: Mapping[int, int] = MappingProxyType({}),
        on_usage_of: Callable[[int, dict[str, Any]], None] = lambda steps, values: None,
    ) -> None:
        self._steps = spec.steps
        self._on_event = on_event
        self._on_usage_of = on_usage_of
        self._ranks = ranks
        self._spikes = SpikeDetector()
        self._recorder = usage_recorder(model, spec)
        self._in_common = {**others, spec.steps: spec.steps}
        self._ever_used = {steps: EverUsed() for steps in self._in_common}

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Watch the forward and backward passes of a step."""
        if self._recorder is None or not self._logged_by(step):
            yield
            return
        with self._recorder.recording():
            yield

    def _logged_by(self, step: int) -> list[int]:
        """Return the steps of the runs that log the usage of a step."""
        in_common = self._in_common.items()
        return [steps for steps, end in in_common if step < end and is_logged(step, steps)]

    def step_done(self, step: int, loss: float) -> None:
        """Report on a step whose loss and gradients are finite."""
        spike = self._spikes.see(loss)
        if spike is not None:
            self._report("spike", {"step": step, **spike})
        logged_by = self._logged_by(step)
        if self._recorder is not None and logged_by:
            counts_LCE = self._recorder.take(self._ranks)
            for steps in logged_by:
                self._ever_used[steps].add(counts_LCE)
                self._report_usage(counts_LCE, step, "train", steps)
        # A run that leaves after this step still finds what was gathered for it.
        for steps in [steps for steps, end in self._in_common.items() if end <= step]:
            del self._in_common[steps], self._ever_used[steps]

    @contextmanager
    def heldout(self, step: int) -> Iterator[Callable[[Tensor], None] | None]:
        """Watch the last evaluation; yield what evaluate takes as ``on_forward``."""
        if self._recorder is None:
            yield None
            return
        recorder = self._recorder
        with recorder.recording():
            yield lambda targets_BT: recorder.count_only(targets_BT != PAD_ID)
        self._report_usage(recorder.take(self._ranks), step, "heldout", self._steps)

    def _report_usage(
        self, counts_LCE: NDArray[np.int64], step: int, split: str, steps: int
    ) -> None:
        assert self._recorder is not None
        if not self._ranks.is_main:
            return
        rows = usage_rows(counts_LCE, self._ever_used[steps], shared=self._recorder.shared)
        values = {"step": step, "split": split, "rows": rows}
        if steps == self._steps:
            self._report("usage", values)
        else:
            self._on_usage_of(steps, values)

    def _report(self, kind: str, values: dict[str, Any]) -> None:
        if self._ranks.is_main:
            self._on_event(kind, values)

    def state(self) -> dict[str, Any]:
        """Return what later events depend on, as JSON values."""
        gathered = {str(steps): used.state() for steps, used in self._ever_used.items()}
        own = gathered.pop(str(self._steps))
        return {
            "spikes": self._spikes.state(),
            "steps": self._steps,
            "ever_used": own,
            "ever_used_of": gathered,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned, of this run or of one that it leaves.

        A run of which the other did not know takes what the other gathered for itself.
        """
        self._spikes.load(state["spikes"])
        # Version 0.1.0 gathered for the run itself alone.
        gathered = state.get("ever_used_of", {})
        whose = state.get("steps", self._steps)
        for steps, used in self._ever_used.items():
            known = {} if steps == whose else gathered
            used.load(known.get(str(steps), state["ever_used"]))
