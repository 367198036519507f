"""How a run is laid out on GPUs: as the plan's estimate chose, where nobody said otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from isoflop.placement import Placement
from isoflop.plan.estimate.memory import PlacementEstimate

_NAMES = ("parallel", "ranks", "micro_batch", "checkpoint_activations")


def laid_out(
    placement: Placement, given: Collection[str], planned: PlacementEstimate | None
) -> Placement:
    """Return the placement of one run, with what the plan chose for it.

    Args:
        placement: of all runs, from the study's table and the command line.
        given: names of the entries that these two hold. A layout is taken whole: one entry of it
            there, and the plan's is not used.
        planned: the estimate's choice; None: there is no estimate.

    On the CPU nothing changes: there a run takes one core and its whole batch at once.
    """
    if not placement.device.startswith("cuda") or planned is None or not planned.fits:
        return placement
    if any(name in given for name in _NAMES):
        return placement
    return dataclasses.replace(
        placement,
        parallel=planned.parallel,
        num_ranks=planned.num_devices,
        micro_batch=None if planned.grad_accum == 1 else planned.micro_batch,
        checkpoint_activations=planned.checkpointing,
    )


def num_gpus(placement: Placement) -> int:
    """Return GPUs that torch sees, for a placement that uses them; 0 for any other."""
    if not placement.device.startswith("cuda"):
        return 0
    import torch

    return torch.cuda.device_count()


def on_own_device(placement: Placement, worker: int, num_devices: int) -> Placement:
    """The placement of a worker's runs, each worker on a GPU of its own as long as there are some.

    Runs of several ranks choose their devices themselves.
    """
    if placement.device != "cuda" or placement.num_ranks > 1 or num_devices < 2:
        return placement
    return dataclasses.replace(placement, device=f"cuda:{worker % num_devices}")
