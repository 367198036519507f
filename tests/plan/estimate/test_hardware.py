from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.plan.estimate.hardware import (
    hardware_from_mapping,
    hardware_names,
    load_hardware,
)
from isoflop.resources import builtin


def h100() -> dict[str, Any]:
    return tomllib.loads(builtin("slurm", "hardware_h100.toml").read_text())


def test_the_built_in_profiles_load_and_say_where_their_numbers_are_from() -> None:
    assert hardware_names() == ["a100", "cpu2", "h100", "h200", "mi300x"]
    for name in hardware_names():
        hardware = load_hardware(name)
        assert hardware.name == name
        assert "Assumed" in hardware.source
        # No profile guesses what a site pays.
        assert hardware.price_per_hour is None


def test_the_folder_names_every_profile() -> None:
    text = (builtin("slurm", "hardware_h100.toml").parent / "README.md").read_text()
    for name in hardware_names():
        assert f"`{name}`" in text


def test_a_profile_of_ones_own_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = builtin("slurm", "hardware_h100.toml").read_text()
    path.write_text("price_per_hour = 2.5\n" + text)
    assert load_hardware(path) == dataclasses.replace(load_hardware("h100"), price_per_hour=2.5)


def test_a_profile_without_tf32_is_as_good_as_before() -> None:
    values = h100()
    del values["matmul_flops_per_s"]["tf32"]
    assert hardware_from_mapping(values).float32_products == "fp32"
    assert load_hardware("h100").float32_products == "tf32"
    assert (
        load_hardware("mi300x").float32_products == load_hardware("cpu2").float32_products == "fp32"
    )


def test_a_missing_key_is_named() -> None:
    values = h100()
    del values["interconnect_bytes_per_s"]
    with pytest.raises(UserError, match=r"hardware.interconnect_bytes_per_s = None.*the profile"):
        hardware_from_mapping(values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": "red"}, "hardware.colour"),
        ({"kind": "tpu"}, "hardware.kind"),
        ({"name": " "}, "hardware.name"),
        ({"memory_bytes": 8e10}, "hardware.memory_bytes"),
        ({"memory_bytes_per_s": 0}, "hardware.memory_bytes_per_s"),
        ({"l2_bytes_per_s": math.nan}, "hardware.l2_bytes_per_s"),
        ({"l2_bytes_per_s": math.inf}, "hardware.l2_bytes_per_s"),
        ({"matmul_efficiency": 1.1}, "hardware.matmul_efficiency"),
        ({"process_bytes": -1}, "hardware.process_bytes"),
        ({"price_per_hour": 0}, "hardware.price_per_hour"),
        ({"matmul_flops_per_s": {"bf16": 1e12}}, "hardware.matmul_flops_per_s"),
        ({"matmul_flops_per_s": {"bf16": 1e12, "fp32": 0}}, "hardware.matmul_flops_per_s.fp32"),
        ({"matmul_flops_per_s": {"bf16": 1, "fp32": 1, "tf32": 0}}, "matmul_flops_per_s.tf32"),
        ({"matmul_flops_per_s": {"bf16": 1, "fp32": 1, "fp8": 1}}, "matmul_flops_per_s"),
    ],
)
def test_an_impossible_value_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        hardware_from_mapping(h100() | change)


@pytest.mark.parametrize(
    ("given", "content", "message"),
    [
        ("v100", None, "one of a100, cpu2, h100"),
        ("none.toml", None, "readable"),
        ("bad.toml", b"name = ", "valid TOML"),
        ("bad.toml", b"\xff\xfe", "valid TOML"),
    ],
)
def test_no_such_profile_is_one_line(
    given: str,
    content: bytes | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(given).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_hardware(given)
    assert "\n" not in str(caught.value)
