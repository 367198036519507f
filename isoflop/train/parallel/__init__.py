"""Several processes that train one run together; imported only where there are several.

Results equal those of one process up to the order of sums, whatever the layout: the compute type is
that of :mod:`isoflop.train.step` everywhere. Nothing else is rounded on its way between ranks, but
for `channel` in bf16: each rank's share of a layer's output is, before the shares are summed. The
mixed precision of FSDP is not used, since it would gather in bfloat16 what computes in float32: the
head, norms and routers.

Rank and number of ranks come from the environment of torchrun or SLURM's srun.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from isoflop.errors import UserError
from isoflop.placement import Placement
from isoflop.train.parallel.channel import ChannelRanks
from isoflop.train.parallel.layouts import DataParallelRanks, SeveralRanks, ShardedRanks

__all__ = ["Place", "place_from_environment", "ranks_from_environment"]

# Longest wait for the other ranks: longer than the main rank needs to write a checkpoint.
TIMEOUT_S = 600.0

_LAYOUTS: Mapping[str, type[SeveralRanks]] = {
    "ddp": DataParallelRanks,
    "fsdp": ShardedRanks,
    "channel": ChannelRanks,
}
# Jobs of one node at the same time must not meet at one port.
_SLURM_PORTS = range(20_000, 30_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One process among those of a run, and where they meet."""

    rank: int
    size: int
    local_rank: int
    """Among the processes of this machine: the number of its GPU."""
    address: str
    """Host of rank 0."""
    port: int


def place_from_environment(environ: Mapping[str, str]) -> Place:
    """Read torchrun's variables or, where they are not set, those of srun.

    Under srun the first host of the job and a port that follows from the job's number are the
    meeting point, unless MASTER_ADDR and MASTER_PORT are set.

    Raises:
        UserError: neither is there, or a variable is missing or no number.
    """
    if "RANK" in environ:
        return Place(
            rank=_number(environ, "RANK"),
            size=_number(environ, "WORLD_SIZE"),
            local_rank=_number(environ, "LOCAL_RANK"),
            address=_text(environ, "MASTER_ADDR"),
            port=_number(environ, "MASTER_PORT"),
        )
    if "SLURM_PROCID" not in environ:
        raise UserError("RANK", None, "set by torchrun or srun", "start the ranks with one of them")
    address = environ.get("MASTER_ADDR") or _first_host(_text(environ, "SLURM_JOB_NODELIST"))
    if "MASTER_PORT" in environ:
        port = _number(environ, "MASTER_PORT")
    else:
        port = _SLURM_PORTS[_number(environ, "SLURM_JOB_ID") % len(_SLURM_PORTS)]
    return Place(
        rank=_number(environ, "SLURM_PROCID"),
        size=_number(environ, "SLURM_NTASKS"),
        local_rank=_number(environ, "SLURM_LOCALID"),
        address=address,
        port=port,
    )


def ranks_from_environment(placement: Placement, timeout_s: float = TIMEOUT_S) -> SeveralRanks:
    """Meet the other processes of the run and return this one's place among them.

    gloo on the CPU, nccl on CUDA, where the device is that of the local rank. To be used as a
    context manager, so that the group is left in the end.

    Raises:
        UserError: ``placement`` names no layout for several ranks, the environment no ranks, or
            this machine has fewer GPUs than ranks.
    """
    if placement.parallel not in _LAYOUTS:
        raise UserError(
            "parallel", placement.parallel, " or ".join(_LAYOUTS), "name the layout of the ranks"
        )
    place = place_from_environment(os.environ)
    device = torch.device(placement.device)
    if device.type == "cuda":
        device = torch.device("cuda", _gpu_of(place.local_rank, torch.cuda.device_count()))
        torch.cuda.set_device(device)
        # Of two communicators at work at once, as channel has them, every rank then begins the same
        # one first: otherwise each may wait for the other's (NCCL 2.26 and later).
        os.environ.setdefault("NCCL_LAUNCH_ORDER_IMPLICIT", "1")
    timeout = datetime.timedelta(seconds=timeout_s)
    os.environ.update(MASTER_ADDR=place.address, MASTER_PORT=str(place.port))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        rank=place.rank,
        world_size=place.size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    return _LAYOUTS[placement.parallel](device, timeout)


def _gpu_of(local_rank: int, num_visible: int) -> int:
    """Return the number of a rank's GPU among the visible ones; SLURM may show each rank its own.

    Raises:
        UserError: there are fewer than ranks.
    """
    if num_visible == 1:
        return 0
    if local_rank >= num_visible:
        raise UserError(
            "ranks of this machine",
            f"{local_rank + 1} or more",
            f"at most {num_visible}, the GPUs they see",
            "start fewer, or show each rank one GPU of its own",
        )
    return local_rank


def _first_host(nodelist: str) -> str:
    """Return `node[03-05,9],other` -> `node03`."""
    match = re.match(r"([^,\[]+)(?:\[([^],-]+))?", nodelist)
    if match is None:
        raise UserError("SLURM_JOB_NODELIST", nodelist, "a list of hosts", "set MASTER_ADDR")
    return match[1] + (match[2] or "")


def _text(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name)
    if not value:
        raise UserError(name, value, "set by torchrun or srun", "start the ranks with one of them")
    return value


def _number(environ: Mapping[str, str], name: str) -> int:
    text = _text(environ, name)
    if not text.isdecimal():
        raise UserError(name, text, "a number", "correct it")
    return int(text)
