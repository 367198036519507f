"""Which rank a process is, by the variables of torchrun and SLURM."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import torch
import torch.distributed as dist

from isoflop.errors import UserError
from isoflop.placement import Placement
from isoflop.train.parallel import Place, place_from_environment, ranks_from_environment

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "host-a",
    "MASTER_PORT": "2345",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[07-08,11],other",
    "SLURM_JOB_ID": "1230042",
}


def test_torchrun() -> None:
    expected = Place(rank=5, size=8, local_rank=1, address="host-a", port=2345)
    assert place_from_environment(TORCHRUN) == expected
    # torchrun within a SLURM job: srun started one torchrun per node, not the ranks.
    assert place_from_environment({**SLURM, **TORCHRUN}) == expected


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("gpu[07-08,11],other", "gpu07"),
        ("gpu[3,5]", "gpu3"),
        ("one", "one"),
        ("one,two", "one"),
        ("a-b-1", "a-b-1"),
    ],
)
def test_srun(nodelist: str, host: str) -> None:
    place = place_from_environment({**SLURM, "SLURM_JOB_NODELIST": nodelist})
    assert place == Place(rank=5, size=8, local_rank=1, address=host, port=20_042)


def test_srun_with_a_meeting_point_of_ones_own() -> None:
    place = place_from_environment({**SLURM, "MASTER_ADDR": "a", "MASTER_PORT": "1"})
    assert (place.address, place.port) == ("a", 1)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "RANK = None: must be set by torchrun or srun"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE = 'many': must be a number"),
        ({**TORCHRUN, "MASTER_PORT": ""}, "MASTER_PORT = '': must be set"),
        ({"SLURM_PROCID": "0"}, "SLURM_JOB_NODELIST = None"),
    ],
)
def test_what_is_missing_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        place_from_environment(environ)


def test_ranks_need_a_layout() -> None:
    with pytest.raises(UserError, match="parallel = 'single': must be ddp or fsdp or channel"):
        ranks_from_environment(Placement())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torch is asked for by a rank of a machine with GPUs, which is not there."""
    made: dict[str, Any] = {}

    def record(name: str, result: Any = None) -> Any:
        return lambda *args, **options: made.update({name: options or args}) or result

    for name, value in {**TORCHRUN, "NCCL_LAUNCH_ORDER_IMPLICIT": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NCCL_LAUNCH_ORDER_IMPLICIT")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", record("set_device"))
    monkeypatch.setattr(dist, "init_process_group", record("init"))
    monkeypatch.setattr(dist, "new_group", record("new_group"))
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "destroy_process_group", record("destroyed"))
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", record("aborted"))
    return made


@pytest.mark.parametrize(("num_visible", "number"), [(1, 0), (2, 1), (8, 1)])
def test_a_rank_takes_its_gpu_or_the_only_one_it_sees(
    calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch, num_visible: int, number: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    ranks = ranks_from_environment(Placement(device="cuda", parallel="channel"), timeout_s=7)
    device, timeout = torch.device("cuda", number), datetime.timedelta(seconds=7)
    assert ranks.device == device
    assert calls["set_device"] == (device,)
    expected = {"rank": 5, "world_size": 8, "timeout": timeout, "device_id": device}
    assert calls["init"] == expected
    # The group of its exchanges, too, which would else wait for as long as torch thinks right.
    assert calls["new_group"] == {"timeout": timeout}


def test_more_ranks_than_gpus(calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UserError, match="'4 or more': must be at most 2, the GPUs they see"):
        ranks_from_environment(Placement(device="cuda", parallel="ddp"))
    assert "init" not in calls


def test_a_rank_with_an_error_does_not_wait_for_the_others(calls: dict[str, Any]) -> None:
    placement = Placement(device="cuda", parallel="ddp")
    with ranks_from_environment(placement):
        pass
    assert ("destroyed" in calls, "aborted" in calls) == (True, False)
    calls.clear()
    with pytest.raises(ValueError, match="here"), ranks_from_environment(placement):
        raise ValueError("here")
    assert ("destroyed" in calls, "aborted" in calls) == (False, True)
