"""Layouts on GPUs, which need none: what the plan chose, and which worker takes which device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from isoflop.cli.run import run
from isoflop.cli.submit import submit
from isoflop.data.prepare import prepare
from isoflop.errors import UserError
from isoflop.launch.job import assign_device, check_gpus, check_layout, resolve_placement
from isoflop.placement import Placement
from isoflop.plan.artefact import write_plan
from isoflop.plan.estimate.memory import PlacementEstimate
from isoflop.plan.planner import make_plan
from made_studies import micro

PLANNED = PlacementEstimate(
    micro_batch=16,
    grad_accum=2,
    num_devices=4,
    parallel="fsdp",
    checkpointing=True,
    peak_mem_bytes=1,
    fits=True,
    reason="",
)
GPU = Placement(device="cuda", compile=True)


def test_a_gpu_run_takes_the_layout_of_its_plan():
    found = resolve_placement(GPU, {"device", "compile"}, PLANNED)
    assert found == Placement(
        device="cuda",
        compile=True,
        parallel="fsdp",
        num_ranks=4,
        micro_batch=16,
        checkpoint_activations=True,
    )


def test_a_batch_that_fits_whole_is_not_cut():
    assert (
        resolve_placement(GPU, (), dataclasses.replace(PLANNED, grad_accum=1)).micro_batch is None
    )


@pytest.mark.parametrize("name", ["parallel", "ranks", "micro_batch", "checkpoint_activations"])
def test_what_somebody_said_about_the_layout_replaces_all_of_the_plans(name):
    assert resolve_placement(GPU, {name}, PLANNED) == GPU


@pytest.mark.parametrize(
    ("placement", "planned"),
    [
        (Placement(), PLANNED),
        (GPU, None),
        (GPU, dataclasses.replace(PLANNED, fits=False)),
    ],
)
def test_without_a_gpu_or_a_plan_that_fits_nothing_changes(placement, planned):
    assert resolve_placement(placement, (), planned) == placement


@pytest.mark.parametrize(
    ("placement", "worker", "num_devices", "device"),
    [
        (GPU, 0, 4, "cuda:0"),
        (GPU, 5, 4, "cuda:1"),
        (GPU, 3, 1, "cuda"),
        (Placement(device="cuda:2"), 1, 4, "cuda:2"),
        (Placement(), 1, 0, "cpu"),
        (Placement(device="cuda", parallel="ddp", num_ranks=2), 1, 4, "cuda"),
    ],
)
def test_each_worker_has_a_device_of_its_own(placement, worker, num_devices, device):
    assert assign_device(placement, worker, num_devices).device == device


@pytest.mark.parametrize(
    "typed",
    [["run"], ["submit", "--dry-run"], ["submit", "--yes"]],
    ids=["run", "dry run", "submit"],
)
def test_a_batch_that_does_not_split_is_refused_before_anything_is_written(
    typed: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    write_plan(make_plan(micro(archs=("mlp",), batch_size=8)), folder)
    prepare("sotu-embedded", "byte")
    before = sorted(folder.rglob("*"))
    verb, *options = typed
    to = ["--cluster", "local"] if verb == "submit" else ["--workers", "1"]
    arguments = [str(folder), "--parallel", "ddp", "--ranks", "3", *to, *options]
    done = CliRunner().invoke({"run": run, "submit": submit}[verb], arguments)
    assert isinstance(done.exception, UserError), done.output
    said = str(done.exception)
    assert said.startswith("ranks = 3: must be a divisor of the batch of 8 sequences of run ")
    assert said.endswith("; choose one of 2, 4, 8")
    assert sorted(folder.rglob("*")) == before


CHANNELS = {"parallel": "channel", "num_ranks": 4}


@pytest.mark.parametrize(
    ("arch", "batch_size", "layout", "wrong"),
    [
        ("mlp", 8, {"parallel": "fsdp", "num_ranks": 8}, None),
        ("mlp", 8, {"parallel": "fsdp", "num_ranks": 16}, "the batch of 8"),
        # Micro-batches need not divide what a rank has.
        ("mlp", 8, {"micro_batch": 3}, None),
        ("mlp", 8, CHANNELS, "used with family sgatlin"),
        ("peer", 8, CHANNELS, "used with family sgatlin"),
        ("sgatlin", 8, CHANNELS | {"num_ranks": 1}, None),
        ("sgatlin", 8, CHANNELS | {"num_ranks": 2}, None),
        ("sgatlin", 9, CHANNELS | {"num_ranks": 3}, "tables of a layer"),
        ("mlp", 8, {"head": "tf32"}, "fp32 or bf16 on the CPU"),
        ("mlp", 8, {"head": "tf32", "device": "cuda"}, None),
    ],
)
def test_layouts_in_which_a_run_cannot_be_trained(
    arch: str, batch_size: int, layout: dict[str, int | str], wrong: str | None
) -> None:
    (planned, *_) = make_plan(micro(archs=(arch,), sizes=(2,), batch_size=batch_size)).runs
    placement = Placement(**layout)  # type: ignore[arg-type]
    if wrong is None:
        check_layout(planned.spec, placement)
    else:
        with pytest.raises(UserError, match=wrong):
            check_layout(planned.spec, placement)


def test_more_ranks_than_gpus_are_refused_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isoflop.launch.job.num_gpus", lambda placement: 2)
    layout = Placement(device="cuda", parallel="ddp", num_ranks=2)
    check_gpus(layout)
    check_gpus(Placement(parallel="ddp", num_ranks=4))
    with pytest.raises(UserError, match="ranks = 4: must be at most 2, the GPUs of this machine"):
        check_gpus(dataclasses.replace(layout, num_ranks=4))
