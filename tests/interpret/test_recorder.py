"""Recording: the evaluation's own numbers, every choice, whole files or none, bounded memory."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from interpret.made_models import BATCH_SIZE, SEQ_LEN, made_heldout, untrained_run
from isoflop.errors import UserError
from isoflop.interpret import recorder as module
from isoflop.interpret.gates import recorded_gates
from isoflop.interpret.load import LoadedRun
from isoflop.interpret.recorder import record
from isoflop.interpret.recording import read_recording
from isoflop.train.evaluate import evaluate

FAMILIES = ("sgatlin", "peer", "moe")


def tables(folder: Path) -> tuple[Any, Any]:
    return pq.read_table(folder / "gates.parquet"), pq.read_table(folder / "tokens.parquet")


def evaluated(loaded: LoadedRun) -> Any:
    return evaluate(loaded.model, loaded.heldout, batch_size=BATCH_SIZE, precision="fp32")


@pytest.mark.parametrize("family", FAMILIES)
def test_recording_is_the_evaluation(family: str, tmp_path: Path) -> None:
    loaded = untrained_run(family)
    assert record(loaded, tmp_path) == evaluated(loaded)
    tokens = tables(tmp_path)[1]
    loss_T = tokens["loss"].to_numpy()
    assert loss_T.astype(np.float64).mean() == pytest.approx(evaluated(loaded).loss, rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tables_hold_what_the_model_did(family: str, tmp_path: Path) -> None:
    """Row by row, against passes over single windows."""
    loaded = untrained_run(family)
    record(loaded, tmp_path, num_top=3)
    gates, tokens = (table.to_pylist() for table in tables(tmp_path))
    held = loaded.heldout
    gate_rows, token_rows = iter(sorted(gates, key=place)), iter(tokens)
    for window, targets_T in enumerate(held.tokens.astype(np.int64)):
        inputs_T = np.concatenate([[held.begin_id], targets_T[:-1]])
        with recorded_gates(loaded.model) as seen:
            logits_TV = loaded.model(torch.from_numpy(inputs_T)[None])[0]
        for position in range(int((targets_T != 0).sum())):
            where = (int(held.document_index[window]), window, position)
            row = next(token_rows)
            assert place(row) == where
            assert (row["input_token"], row["target_token"]) == (
                inputs_T[position],
                targets_T[position],
            )
            probs_V = torch.softmax(logits_TV[position], 0)
            assert row["loss"] == pytest.approx(-float(probs_V[targets_T[position]].log()), 1e-4)
            top = torch.topk(probs_V, 3)
            assert row["top_tokens"] == top.indices.tolist()
            assert row["top_probs"] == pytest.approx(top.values.tolist(), 1e-4)
            for layer, (idx, score) in enumerate(zip(seen.idx, seen.score, strict=True)):
                for channel in range(idx.shape[1]):
                    row = next(gate_rows)
                    assert place(row) == where
                    assert (row["layer"], row["channel"]) == (layer, channel)
                    assert row["experts"] == idx[position, channel].tolist()
                    wanted = score[position, channel].tolist()
                    assert row["scores"] == pytest.approx(wanted, abs=1e-5)
    assert next(gate_rows, None) is next(token_rows, None) is None


def place(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[name] for name in ("document", "window", "position"))


def test_types_are_wide_enough_and_each_layer_of_a_batch_is_a_row_group(tmp_path: Path) -> None:
    record(untrained_run(), tmp_path)
    with pq.ParquetFile(tmp_path / "gates.parquet") as file:
        types = {field.name: str(field.type) for field in file.schema_arrow}
        layers = [
            set(file.read_row_group(group)["layer"].to_pylist())
            for group in range(file.num_row_groups)
        ]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert types["experts"] == "list<element: int32>"
    assert types["scores"] == "list<element: float>"
    # Nine windows in passes of four.
    assert layers == [{0}, {1}] * 3


@pytest.mark.parametrize("num", [1, 7, 16, 17, 40, 60, 10**9])
def test_no_more_tokens_than_asked_for(num: int, tmp_path: Path) -> None:
    loaded = untrained_run()
    record(loaded, tmp_path / "all")
    found = record(loaded, tmp_path / "some", max_tokens=num)
    whole, some = tables(tmp_path / "all")[1], tables(tmp_path / "some")[1]
    wanted = min(num, len(whole))
    assert len(some) == found.num_tokens == wanted
    columns = ["document", "window", "position", "input_token", "target_token"]
    assert some.select(columns).equals(whole.select(columns).slice(0, wanted))
    meta = read_recording(tmp_path / "some")
    assert (meta.num_tokens, meta.complete) == (wanted, wanted == len(whole))


def test_only_the_layers_asked_for(tmp_path: Path) -> None:
    loaded = untrained_run()
    record(loaded, tmp_path / "all")
    record(loaded, tmp_path / "one", layers=[1, 1])
    whole, one = tables(tmp_path / "all")[0], tables(tmp_path / "one")[0]
    mask = np.array(whole["layer"]) == 1
    assert one.equals(whole.filter(mask))
    assert read_recording(tmp_path / "one").layers == (1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2]}, "--layers"),
        ({"layers": [-1]}, "--layers"),
        ({"layers": []}, "--layers"),
        ({"max_tokens": 0}, "--max-tokens"),
        ({"num_top": 0}, "--top"),
        ({"num_top": 257}, "--top"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        record(untrained_run(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_recording_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    loaded = untrained_run()
    record(loaded, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def break_off(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(loaded, tmp_path, num_top=2, on_progress=break_off)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # The model is as it was.
    assert not any(m._forward_hooks for m in loaded.model.modules())
    assert record(loaded, tmp_path) == evaluated(loaded)


def test_files_of_two_recordings_are_no_recording(tmp_path: Path) -> None:
    for name, num in (("a", 9), ("b", 10)):
        record(untrained_run(), tmp_path / name, max_tokens=num)
    shutil.copy(tmp_path / "b" / "tokens.parquet", tmp_path / "a")
    with pytest.raises(UserError, match="one recording's two files"):
        read_recording(tmp_path / "a")


def test_a_cut_off_or_missing_file_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="isoflop interpret record"):
        read_recording(tmp_path)
    record(untrained_run(), tmp_path)
    path = tmp_path / "gates.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="whole recorded file"):
        read_recording(tmp_path)


def test_what_is_recorded_of_the_model_is_said(tmp_path: Path) -> None:
    loaded = untrained_run(tables="shared")
    record(loaded, tmp_path, num_top=2)
    found = read_recording(tmp_path)
    assert (found.run_id, found.layers, found.num_top) == (loaded.run_id, (0, 1), 2)
    assert (found.num_experts, found.shared, found.complete) == (36, True, True)


def test_passes_over_long_windows_are_small(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded = untrained_run()
    monkeypatch.setattr(module, "TOKENS_AT_A_TIME", 2 * SEQ_LEN)
    record(loaded, tmp_path)
    with pq.ParquetFile(tmp_path / "tokens.parquet") as file:
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    # Batches of 4, 4 and 1 windows.
    assert len(sizes) == 5
    assert max(sizes) <= 2 * SEQ_LEN


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """What the process holds after each pass, against what it has written until then."""
    loaded = untrained_run(heldout=made_heldout(5000))
    loaded = replace(loaded, spec=replace(loaded.spec, batch_size=64))
    held: list[int] = []
    record(loaded, tmp_path, on_progress=lambda done, total: held.append(resident_bytes()))
    num_rows, num_passes = len(tables(tmp_path)[0]), len(held)
    assert num_passes == 79
    # Four indices and four scores, without the place.
    written = num_rows * 4 * (4 + 4)
    assert written > 10_000_000
    assert held[-1] - held[num_passes // 4] < written / 4


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
