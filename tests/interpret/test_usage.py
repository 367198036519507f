"""Use of experts over a whole recording, and over training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interpret.made_models import untrained_run
from isoflop.errors import UserError
from isoflop.interpret.load import LoadedRun, open_run, shape_of
from isoflop.interpret.recorder import record
from isoflop.interpret.usage import (
    USAGE,
    count_choices,
    over_training,
    training_usage,
    usage_rows,
    write_usage,
)
from isoflop.plan.artefact import read_plan
from isoflop.tables import read_table
from isoflop.train.evaluate import evaluate
from isoflop.train.ranks import SINGLE
from isoflop.train.routing import usage_figures, usage_recorder


def recorded_by_training(loaded: LoadedRun) -> np.ndarray:
    """What train.routing counts in an evaluation."""
    recorder = usage_recorder(loaded.model, loaded.spec)
    assert recorder is not None
    with recorder.recording():
        evaluate(
            loaded.model,
            loaded.heldout,  # type: ignore[arg-type]
            batch_size=4,
            precision="fp32",
            on_forward=lambda targets: recorder.count_only(targets != 0),
        )
    return recorder.take(SINGLE)


@pytest.mark.parametrize("family", ["sgatlin", "peer", "moe"])
def test_a_recording_is_counted_as_training_counts(tmp_path: Path, family: str) -> None:
    loaded = untrained_run(family)
    record(loaded, tmp_path)
    counts = count_choices(tmp_path, shape_of(loaded))
    assert np.array_equal(counts, recorded_by_training(loaded))
    assert counts.sum() > 0


def test_figures_by_hand() -> None:
    counts = np.array([[[4, 0, 0, 4], [1, 1, 1, 5]]])
    first, second, both = usage_rows(counts, [0], num_tokens=4, shared=False)
    assert (first["fraction_used"], first["num_dead"], first["cv"]) == (0.5, 2, 1.0)
    # Two of four alike: log 2 / log 4.
    assert first["entropy"] == pytest.approx(0.5)
    assert (second["fraction_used"], second["num_dead"]) == (1.0, 0)
    assert second["cv"] == pytest.approx(3**0.5 / 2)
    assert (both["channel"], both["num_experts"], both["num_dead"]) == (None, 8, 2)
    (_, _, pooled) = usage_rows(counts, [0], num_tokens=4, shared=True)
    assert (pooled["num_experts"], pooled["num_dead"]) == (4, 0)


def test_sequences_are_added_before_figures_are_taken(tmp_path: Path) -> None:
    """The mean over sequences would call experts unused that others of them use."""
    loaded = untrained_run()
    record(loaded, tmp_path)
    counts = count_choices(tmp_path, shape_of(loaded))
    whole = usage_figures(counts[0, 0])
    assert loaded.heldout is not None
    single = []
    for window in range(len(loaded.heldout.tokens)):
        part = LoadedRun.from_model(
            loaded.spec,
            loaded.model,
            loaded.tokenizer,
            heldout=_one_window(loaded.heldout, window),
        )
        record(part, tmp_path / "part")
        single.append(count_choices(tmp_path / "part", shape_of(part))[0, 0])
    assert np.array_equal(np.sum(single, axis=0), counts[0, 0])
    mean = np.mean([usage_figures(each)["fraction_used"] for each in single])
    assert whole["fraction_used"] > mean + 0.1
    assert whole["entropy"] > np.mean([usage_figures(each)["entropy"] for each in single])


def _one_window(heldout: object, window: int) -> object:
    import copy

    part = copy.copy(heldout)
    part.tokens = heldout.tokens[[window]]  # type: ignore[attr-defined]
    part.document_index = np.zeros(1, dtype=np.int64)  # type: ignore[attr-defined]
    return part


def test_only_recorded_layers_have_rows(tmp_path: Path) -> None:
    loaded = untrained_run()
    record(loaded, tmp_path, layers=[1])
    found = write_usage(loaded, tmp_path, tmp_path / "out")
    assert {row["layer"] for row in found.rows} == {1}
    assert all(path.stat().st_size > 0 for path in found.files)


def test_a_run_s_last_held_out_usage_is_that_of_its_recording(
    tmp_path: Path, study: Path, study_data: Path
) -> None:
    """What the study logged as it ended, its weights say again."""
    run = next(r for r in read_plan(study).unique_runs if r.spec.family == "sgatlin")
    loaded = open_run(study, run.run_id)
    record(loaded, tmp_path)
    write_usage(loaded, tmp_path, tmp_path)
    rows = read_table(tmp_path / "expert_usage.parquet", USAGE)
    assert loaded.folder is not None
    training = training_usage(loaded.folder)
    assert training is not None
    logged = {(r["layer"], r["channel"]): r for r in training if r["split"] == "heldout"}
    assert len(logged) == len(rows) > 0
    for row in rows:
        of_training = logged[row["layer"], row["channel"]]
        for name in ("num_experts", "num_choices", "fraction_used", "entropy", "cv"):
            assert row[name] == pytest.approx(of_training[name], rel=1e-9), name
    curves = over_training(training, "ever_used")
    assert set(curves) == {row["layer"] for row in rows}
    for points in curves.values():
        values = [value for _, value in points]
        assert len(values) > 1
        assert values == sorted(values)


def test_a_run_that_logged_no_usage_has_none(tmp_path: Path) -> None:
    assert training_usage(tmp_path) is None


def test_one_channel_is_its_layer_and_several_are_taken_together() -> None:
    def row(step: int, layer: int, channel: int | None, entropy: float | None) -> dict[str, object]:
        return {
            **{"step": step, "layer": layer, "channel": channel, "entropy": entropy},
            "split": "train",
        }

    rows = [row(5, 0, 0, 0.1), row(5, 0, 1, 0.2), row(5, 0, None, 0.3), row(0, 0, None, 0.4)]
    rows += [row(0, 1, 0, 0.5), row(5, 1, 0, None), {**row(9, 1, 0, 0.6), "split": "heldout"}]
    assert over_training(rows, "entropy") == {0: [(0, 0.4), (5, 0.3)], 1: [(0, 0.5)]}


def test_usage_without_a_recording_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="isoflop interpret record") as caught:
        write_usage(untrained_run(), tmp_path, tmp_path)
    assert "\n" not in str(caught.value)
