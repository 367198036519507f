from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.plan.estimate.hardware import (
    CALIBRATION_FILE,
    Calibration,
    MeasuredStep,
    StepShape,
    load_calibration,
    shape_key,
    write_calibration,
)
from made_shapes import rung_spec

SPEC = rung_spec("sgatlin", 2, "micro-v1")
MADE = Calibration(
    kind="cpu",
    machine="a machine",
    torch="2.0",
    date="2026-01-02",
    num_threads=1,
    entries=(
        MeasuredStep(
            shape=StepShape.of(SPEC),
            step_s=0.5,
            step_s_min=0.4,
            step_s_max=0.6,
            num_steps=10,
            peak_mem_bytes=None,
        ),
    ),
)


def test_a_calibration_survives_its_file_and_its_folder(tmp_path: Path) -> None:
    write_calibration(tmp_path / CALIBRATION_FILE, MADE)
    assert load_calibration(tmp_path / CALIBRATION_FILE) == MADE
    assert load_calibration(tmp_path) == MADE
    assert MADE.by_shape() == {shape_key(SPEC): MADE.entries[0]}


def test_the_key_leaves_out_what_does_not_change_a_step() -> None:
    same = {"steps": 7, "seed": 9, "data_id": "x", "tokenizer_hash": "y", "recipe": "micro-v1"}
    assert shape_key(rung_spec("sgatlin", 2, "micro-v1", **same)) == shape_key(SPEC)
    other = {"d_model": 16, "n_layers": 3, "n_heads": 2, "vocab_size": 9, "seq_len": 7}
    other |= {"batch_size": 1, "precision": "bf16"}
    for name, value in other.items():
        assert shape_key(rung_spec("sgatlin", 2, "micro-v1", **{name: value})) != shape_key(SPEC)


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("schema_version",), 2, "schema version 1"),
        (("kind",), "tpu", "kind"),
        (("surprise",), 1, "surprise = 1: must be a known key"),
        (("entries", 0, "step_s"), 0, r"n\.json: entries\.0.step_s = 0: .* calibrate` again"),
        (("entries", 0, "shape", "d_model"), "8", r"entries\.0.shape.d_model"),
    ],
)
def test_a_damaged_file_is_refused_by_field(
    keys: tuple[Any, ...], value: Any, named: str, tmp_path: Path
) -> None:
    path = tmp_path / CALIBRATION_FILE
    write_calibration(path, MADE)
    values = json.loads(path.read_text())
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=named):
        load_calibration(path)


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="existing file"):
        load_calibration(tmp_path)
