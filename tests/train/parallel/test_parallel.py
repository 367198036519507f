"""Two gloo processes against one: curves, weights, checkpoints across layouts, refusals."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import made_training
from isoflop.families import config_from_mapping
from isoflop.spec import RunSpec
from isoflop.train.ranks import SINGLE

SCRIPT = Path(__file__).parent / "two_ranks.py"
TIMEOUT_S = 300
BOUND = 1e-5
NUM_STEPS = 20

CONFIGS: dict[str, dict[str, int]] = {
    "mlp": {"hidden_width": 24},
    "swiglu": {"hidden_width": 24},
    "moe": {"num_experts": 4, "num_active": 2, "hidden_width": 8},
    "peer": {"num_channels": 2, "num_neighbours": 2, "num_experts": 16, "router_width": 8},
    "sgatlin": {"num_channels": 2, "num_neighbours": 2, "num_experts": 16, "router_width": 8},
}


def made_spec(family: str, **changes: Any) -> RunSpec:
    config = dataclasses.asdict(config_from_mapping(family, CONFIGS[family]))
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 64, "seq_len": 12}
    return made_training.made_spec(
        family, **{"config": config, "batch_size": 8, "steps": NUM_STEPS, **shape, **changes}
    )


def order(
    name: str,
    family: str,
    parallel: str,
    *,
    resume: str | None = None,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    return {
        "name": name,
        "spec": made_spec(family, **(changes or {})).to_json(),
        "parallel": parallel,
        "port": free_port(),
        "resume": resume,
        "options": options,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def give(orders: Sequence[dict[str, Any]], folder: Path, size: int = 2) -> None:
    """Has ``size`` processes carry out all orders."""
    path = folder / "orders.json"
    path.write_text(json.dumps(orders))
    places = [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(size)} for r in range(size)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(path)],
            env={**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"},
        )
        for place in places
    ]
    try:
        assert [process.wait(TIMEOUT_S) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
            process.wait()


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alone(family: str, folder: Path) -> dict[str, Tensor]:
    """The undisturbed run of one process, in this one."""
    module = script()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        module.save(folder / f"alone-{family}", *module.train(made_spec(family), SINGLE))
    finally:
        torch.set_num_threads(threads)
    return load_file(folder / f"alone-{family}")


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert (found[name] - value).abs().max() < BOUND, name


@pytest.mark.slow
def test_two_ranks_are_as_good_as_one(tmp_path: Path) -> None:
    """All orders in one start of two processes, since importing torch takes as long as they do."""
    bf16 = {"precision": "bf16"}
    odd = {"config": {**made_spec("sgatlin").config, "num_channels": 3}}
    orders = [
        order("mlp-ddp", "mlp", "ddp"),
        order("mlp-fsdp", "mlp", "fsdp"),
        order("sgatlin-channel", "sgatlin", "channel"),
        # Layouts one after the other, and one process between them.
        order("part-1", "sgatlin", "ddp", last=8),
        order("part-2", "sgatlin", "single", resume="part-1", first=8, last=12),
        order("part-3", "sgatlin", "channel", resume="part-2", first=12, last=16),
        order("part-4", "sgatlin", "fsdp", resume="part-3", first=16),
        order("whole-ddp", "mlp", "ddp", last=10),
        order("micro-ddp", "mlp", "ddp", micro_batch=1, last=10),
        order("micro-fsdp", "mlp", "fsdp", micro_batch=1, last=10),
        # Of a table that is read in two bytes, every step's values: they are cast anew.
        order("bf16-ddp", "sgatlin", "ddp", changes=bf16, last=4),
        order("bf16-fsdp", "sgatlin", "fsdp", changes=bf16, last=4),
        order("tied-1", "mlp", "ddp", tie="layer", last=3),
        order("tied-2", "mlp", "fsdp", tie="layer", resume="tied-1", first=3, last=5),
        order("tied-3", "mlp", "single", tie="layer", resume="tied-2", first=5, last=6),
        order("tied-whole", "mlp", "single", tie="layer", last=6),
        order("tied-across", "mlp", "fsdp", tie="model"),
        order("uneven", "mlp", "ddp", changes={"batch_size": 7}),
        order("channel-mlp", "mlp", "channel"),
        order("channel-odd", "sgatlin", "channel", changes=odd),
        *saving_orders(),
    ]
    give(orders, tmp_path)
    files = [path for path in tmp_path.iterdir() if path.is_file() and not path.suffix]
    made = {path.name: load_file(path) for path in files}
    mlp, sgatlin = alone("mlp", tmp_path), alone("sgatlin", tmp_path)
    check_that_the_bound_is_one(mlp)

    assert_close(made["mlp-ddp"], mlp)
    assert_close(made["mlp-fsdp"], mlp)
    assert_close(made["sgatlin-channel"], sgatlin)
    check_that_checkpoints_go_on_in_any_layout(made, sgatlin)
    assert_close(made["micro-ddp"], made["whole-ddp"])
    assert_close(made["micro-fsdp"], made["whole-ddp"])
    assert_close(made["bf16-fsdp"], made["bf16-ddp"])
    check_that_tied_parameters_go_on_as_one(made)
    check_that_all_refuse("whose blocks share no parameter; take ddp", tmp_path / "tied-across")
    check_that_all_refuse("batch_size = 7: must be a multiple of the 2 ranks", tmp_path / "uneven")
    check_that_all_refuse("must be used with family sgatlin", tmp_path / "channel-mlp")
    check_that_all_refuse("tables of a layer = 3: must be a multiple", tmp_path / "channel-odd")
    check_that_shards_are_gone_on_from_bit_for_bit(tmp_path)
    check_that_shards_are_gone_on_from_in_another_layout(tmp_path)


def saving_orders() -> list[dict[str, Any]]:
    """Runs of six steps that are stopped after three, in shards, and gone on with."""
    orders = []
    for layout in ("fsdp", "channel"):
        orders += [
            saving(f"{layout}-undisturbed", layout),
            saving(f"{layout}-stopped", layout, stop_at=3),
            saving(f"{layout}-ended", layout, resume=f"{layout}-stopped"),
        ]
    return [
        *orders,
        # The same values as a single process writes them.
        saving("fsdp-whole", "single", resume="fsdp-stopped", only_copy=True),
        saving("fsdp-ended-whole", "fsdp", resume="fsdp-whole"),
        saving("fsdp-alone", "single", resume="fsdp-stopped"),
        saving("channel-to-fsdp", "fsdp", resume="channel-stopped"),
    ]


def saving(name: str, parallel: str, *, resume: str | None = None, **saves: Any) -> dict[str, Any]:
    # A width of which the last rank has fewer rows, and vectors of one row.
    changes = {"vocab_size": 113, "steps": 6, "batch_size": 4}
    return {**order(name, "sgatlin", parallel, resume=resume, changes=changes), "saves": saves}


def final_weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "ckpt" / "6" / "weights.safetensors")


def check_that_shards_are_gone_on_from_bit_for_bit(folder: Path) -> None:
    assert (folder / "fsdp-whole/ckpt/3/weights.safetensors").exists()
    for layout, names in (("fsdp", ["ended", "ended-whole"]), ("channel", ["ended"])):
        files = {path.name for path in (folder / f"{layout}-stopped/ckpt/3").iterdir()}
        assert "weights-00002-of-00002.safetensors" in files
        expected = final_weights(folder / f"{layout}-undisturbed")
        for name in names:
            assert_equal(final_weights(folder / f"{layout}-{name}"), expected)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def check_that_shards_are_gone_on_from_in_another_layout(folder: Path) -> None:
    for name, layout in (("fsdp-alone", "fsdp"), ("channel-to-fsdp", "channel")):
        expected = final_weights(folder / f"{layout}-undisturbed")
        assert_close(final_weights(folder / name), expected)


def check_that_the_bound_is_one(alone: dict[str, Tensor]) -> None:
    """Training moves the loss by far more, and the norm is clipped."""
    assert len(alone["losses"]) == NUM_STEPS
    assert (alone["losses"][0] - alone["losses"][-1]).abs() > 1000 * BOUND
    assert alone["norms"].min() > script().CLIP_NORM


def check_that_checkpoints_go_on_in_any_layout(
    made: dict[str, dict[str, Tensor]], alone: dict[str, Tensor]
) -> None:
    steps = [len(made[f"part-{number}"]["losses"]) for number in (1, 2, 3, 4)]
    assert steps == [8, 4, 4, 4]
    assert_close(made["part-4"], end_of(alone, 4))


def check_that_tied_parameters_go_on_as_one(made: dict[str, dict[str, Tensor]]) -> None:
    assert_close(made["tied-3"], end_of(made["tied-whole"], 1))
    assert not any("again" in name for name in made["tied-3"])
    assert made["tied-3"]["weights:blocks.1.feedforward.made_at"] == 0.0


def check_that_all_refuse(message: str, path: Path) -> None:
    for rank in range(2):
        assert message in Path(f"{path}.{rank}").read_text()
    assert not path.exists()


def end_of(run: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
    """The run with the curves of its last steps only."""
    return {**run, **{name: run[name][-steps:] for name in ("losses", "norms")}}


@pytest.mark.slow
def test_all_families_in_all_layouts(tmp_path: Path) -> None:
    layouts = {family: ["ddp", "fsdp"] for family in CONFIGS}
    layouts["sgatlin"].append("channel")
    cases = [(family, parallel) for family, names in layouts.items() for parallel in names]
    give([order(f"{f}-{p}", f, p) for f, p in cases], tmp_path)
    for family in CONFIGS:
        expected = alone(family, tmp_path)
        for parallel in layouts[family]:
            assert_close(load_file(tmp_path / f"{family}-{parallel}"), expected)


@pytest.mark.slow
def test_a_killed_rank_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    kills = [
        {"rank": 1, "at": "writes"},
        {"rank": 1, "at": "writes", "call": 2},
        {"rank": 1, "at": "has written"},
        {"rank": 0, "at": "has written"},
        {"rank": 0, "at": "seals"},
        {"rank": 0, "at": "has sealed"},
    ]
    orders = [saving("undisturbed", "fsdp"), saving("before", "fsdp", stop_at=3)]
    for number, killed in enumerate(kills):
        name = f"killed-{number}"
        orders.append(saving(name, "fsdp", resume="before", stop_at=5, killed=killed))
        orders.append(saving(f"{name}-ended", "fsdp", resume=name))
    last = f"killed-{len(kills) - 1}"
    give([*orders, saving("alone", "single", resume=last)], tmp_path)
    expected = final_weights(tmp_path / "undisturbed")
    for number, killed in enumerate(kills):
        name = f"killed-{number}"
        assert (tmp_path / f"{name}.{killed['rank']}").read_text() == "-9", killed
        left = {path.name for path in (tmp_path / name / "ckpt").iterdir()}
        # A main rank that lives tidies up; else there is a name that no reader looks at.
        assert "3" in left
        assert "5" not in left
        assert len(left) == (2 if killed["rank"] == 0 else 1)
        assert_equal(final_weights(tmp_path / f"{name}-ended"), expected)
    assert_close(final_weights(tmp_path / "alone"), expected)


@pytest.mark.slow
def test_four_ranks(tmp_path: Path) -> None:
    config = {**made_spec("sgatlin").config, "num_channels": 4}
    spec = {"config": config}
    orders = [
        order("four", "sgatlin", "channel", changes=spec, last=20),
        order("one", "sgatlin", "single", changes=spec, last=20),
    ]
    give(orders, tmp_path, size=4)
    assert_close(load_file(tmp_path / "four"), load_file(tmp_path / "one"))
