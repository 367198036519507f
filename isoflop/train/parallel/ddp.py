"""Data parallel: every rank has all parameters, gradients are averaged in buckets as they come."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isoflop.train.parallel.base import SeveralRanks


class DataParallelRanks(SeveralRanks):
    """`ddp`. A checkpoint is what a single rank's is, and no exchange is needed for one."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """DistributedDataParallel around ``model``, which begins with the main rank's values."""
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def whole(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return the value: all ranks have the same."""
        return value

    def part(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return a copy of the whole."""
        return whole.to(parameter.device, copy=True)
