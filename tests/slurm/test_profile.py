"""Cluster profiles: what a file may say, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.launch.slurm.profile import (
    ClusterProfile,
    load_profile,
    profile_from_mapping,
    profile_names,
)

WHOLE = {
    "name": "mine",
    "hardware": "h100",
    "partition": "gpu",
    "account": "lab",
    "qos": "long",
    "gpus_per_node": 8,
    "gpu_type": "h100",
    "cpus_per_device": 12,
    "memory_gb_per_device": 100,
    "time_limit_min": 600,
    "modules": ["cuda/12.8"],
    "setup": ["export A=1"],
    "sbatch": {"constraint": "ib", "exclusive": True, "nice": 5},
}


def test_every_built_in_profile_loads_with_its_hardware() -> None:
    assert {"a100", "cpu", "h100"} <= set(profile_names())
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name
        assert profile.load_hardware().kind == profile.device


def test_what_a_record_keeps_is_the_profile() -> None:
    profile = profile_from_mapping(WHOLE)
    assert profile.modules == ("cuda/12.8",)
    assert profile.sbatch == WHOLE["sbatch"]
    assert profile_from_mapping(profile.to_json()) == profile
    assert profile.throttle == ClusterProfile(name="a", hardware="h100").throttle


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"partitoin": "gpu"}, "cluster.partitoin = 'gpu': must be a known key (name, hardware,"),
        ({"throttle": 0}, "cluster.throttle = 0"),
        ({"memory_gb_per_device": float("inf")}, "cluster.memory_gb_per_device = inf"),
        (
            {"sbatch": {"time": 5}},
            "cluster.sbatch.time = 5: must be an option that no other key sets",
        ),
        ({"sbatch": {"--nice": 5}}, "cluster.sbatch.--nice = 5"),
        ({"sbatch": {"nice": 1.5}}, "cluster.sbatch.nice = 1.5"),
        ({"sbatch": {"export": "NONE"}}, "cluster.sbatch.export = 'NONE': must be left out: a job"),
        ({"sbatch": {"parsable": True}}, "cluster.sbatch.parsable = True: must be left out"),
        ({"gpus_per_node": 0}, "cluster.gpu_type = 'h100': must be left out"),
        ({"time_floor_min": 601}, "cluster.time_floor_min = 601: must be at most"),
        ({"time_limit_min": 2, "time_floor_min": 1}, "cluster.signal_s = 120: must be shorter"),
    ],
)
def test_mistakes(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        profile_from_mapping(WHOLE | changes)
    assert str(caught.value).startswith(wanted)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match=r"cluster\.hardware = None: must be given"):
        profile_from_mapping({"name": "mine"})


def test_hardware_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nhardware = "h100"\n')
    with pytest.raises(UserError, match=r"cluster\.hardware = 'h100': must be of kind"):
        load_profile(path).load_hardware()


@pytest.mark.parametrize("name", ["nosuch", "h200", "hardware_h100"])
def test_no_such_profile(name: str) -> None:
    with pytest.raises(UserError, match=r"must be one of local, a100, .*or a \.toml file"):
        load_profile(name)


def test_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = \n")
    with pytest.raises(UserError, match="must be valid TOML"):
        load_profile(path)
    with pytest.raises(UserError, match="must be a readable file"):
        load_profile(tmp_path / "other.toml")
