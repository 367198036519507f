"""Measuring steps: each shape once, in the plan's order; the command and its file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from isoflop.cli.calibrate import calibrate as command
from isoflop.errors import UserError
from isoflop.placement import Placement
from isoflop.plan.artefact import write_plan
from isoflop.plan.estimate import estimate_plan, load_calibration, load_hardware
from isoflop.plan.estimate.hardware import shape_key
from isoflop.plan.planner import make_plan
from isoflop.spec import RunSpec
from isoflop.train import calibrate as calibration
from isoflop.train.calibrate import calibrate, distinct_shapes, measure_step
from made_shapes import rung_spec
from made_studies import micro


def test_shapes_are_measured_once_in_order() -> None:
    specs = [
        rung_spec(family, 1, "micro-v1", seed=seed, steps=50 + seed)
        for seed in (0, 1)
        for family in ("sgatlin", "mlp")
    ]
    assert distinct_shapes(specs) == specs[:2]
    seen = []
    measured = calibrate(
        specs, steps=2, on_measured=lambda spec, so_far: seen.append((spec, len(so_far.entries)))
    )
    assert seen == [(specs[0], 1), (specs[1], 2)]
    assert [e.shape.key for e in measured.entries] == [shape_key(s) for s in specs[:2]]
    assert (measured.kind, measured.num_threads, measured.torch) == ("cpu", 1, torch.__version__)
    assert measured.machine
    for entry in measured.entries:
        assert 0 < entry.step_s_min <= entry.step_s <= entry.step_s_max
        assert entry.num_steps == 2
        assert (entry.micro_batch, entry.checkpointing) == (entry.shape.batch_size, False)


def test_bf16_and_odd_shapes_are_measured_too() -> None:
    spec = rung_spec("moe", 1, "micro-v1", batch_size=1, seq_len=1, precision="bf16")
    assert measure_step(spec, Placement(), steps=1).step_s > 0


def test_micro_batches_are_those_asked_for_or_those_of_the_placement() -> None:
    spec = rung_spec("mlp", 1, "micro-v1")
    for asked, taken in ((3, 3), (99, spec.batch_size), (None, spec.batch_size)):
        placement = calibration._placement(spec, torch.device("cpu"), asked)
        assert placement == Placement(micro_batch=taken)


def test_a_gpu_takes_the_micro_batches_that_its_memory_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def placed(size: int, gigabytes: float, micro_batch: int | None = None) -> Any:
        memory = SimpleNamespace(total_memory=int(gigabytes * 1e9))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
        return calibration._placement(rung_spec("sgatlin", size), torch.device("cuda"), micro_batch)

    # Those of the estimate for that device: 16 sequences of 128 on an H100.
    assert placed(6, 80) == Placement(device="cuda", micro_batch=16)
    assert placed(6, 141).micro_batch == 64
    assert placed(6, 80, 5).micro_batch == 5
    assert placed(8, 80).startswith("does not fit one device of this GPU")


def test_a_run_that_is_cut_keeps_what_it_has_and_one_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(micro(archs=("mlp", "peer"), seeds=(0,)))
    write_plan(plan, tmp_path)
    measure, done = calibration.measure_step, []

    def ending(spec: RunSpec, placement: Placement, *, steps: int) -> Any:
        done.append(spec)
        if len(done) == 2:
            raise torch.OutOfMemoryError("out of memory: 12 GB\nmore")
        if len(done) == 4:
            raise KeyboardInterrupt
        return measure(spec, placement, steps=steps)

    monkeypatch.setattr(calibration, "measure_step", ending)
    result = CliRunner().invoke(command, [str(tmp_path), "--steps", "1"])
    assert result.exit_code != 0
    shapes = [entry.shape.key for entry in load_calibration(tmp_path).entries]
    assert shapes == [shape_key(done[0]), shape_key(done[2])]
    assert "is not measured: out of memory: 12 GB\n" in result.output


@pytest.mark.parametrize(
    ("options", "named"),
    [({"steps": 0}, "--steps = 0"), ({"device": "tpu"}, "--device = 'tpu'")],
)
def test_mistakes_are_named(options: dict[str, object], named: str) -> None:
    begun: list[int] = []
    with pytest.raises(UserError, match=named):
        calibrate([rung_spec("mlp", 1, "micro-v1")], on_begin=begun.append, **options)  # type: ignore[arg-type]
    assert not begun


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        calibrate([rung_spec("mlp", 1, "micro-v1")], device="cuda")


def test_the_command_writes_a_file_that_estimates_use(tmp_path: Path) -> None:
    plan = make_plan(micro(archs=("mlp", "peer"), seeds=(0, 1)))
    write_plan(plan, tmp_path)
    result = CliRunner().invoke(command, [str(tmp_path), "--steps", "1"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("4 shapes, one after the other\n")
    assert "4 shapes measured on" in result.output
    assert f"--calibration {tmp_path}/calibration.json" in result.output
    estimate = estimate_plan(plan, load_hardware("cpu2"), calibration=load_calibration(tmp_path))
    assert estimate.num_calibrated == len(plan.unique_runs) == 8


def test_without_a_folder_the_built_in_study_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    measured = []

    def fake(specs: object, **options: object) -> object:
        measured.append((specs, options))
        raise UserError("stop", 1, "here", "end")

    monkeypatch.setattr("isoflop.train.calibrate.calibrate", fake)
    with pytest.raises(UserError, match="stop"):
        CliRunner().invoke(command, ["--steps", "4"], catch_exceptions=False)
    ((specs, options),) = measured
    assert len(specs) > 10
    assert options["steps"] == 4
    assert not list(tmp_path.iterdir())
