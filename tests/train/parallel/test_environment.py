"""Which rank a process is, by the variables of torchrun and SLURM."""

from __future__ import annotations

import pytest

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
