"""torch.compile of a model, given up with one line in the log where it does not work."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from isoflop.train.precision import compute_type

logger = logging.getLogger("isoflop")


def compile_model(model: nn.Module, inputs_BT: Tensor, *, precision: str) -> bool:
    """Compile ``model`` in place, its names and parameters unchanged, and tries it out.

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
        Whether the model is compiled now.
    """
    # An attribute of the instance, found before the class's method.
    setattr(model, "forward", torch.compile(model.forward, dynamic=False))  # noqa: B010
    try:
        # torch's own notices on what it traces through.
        with warnings.catch_warnings(action="ignore"):
            with compute_type(precision, inputs_BT.device):
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
        return False
    finally:
        model.zero_grad(set_to_none=True)
    return True
