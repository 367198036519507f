from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop import trainer
from isoflop.launch.command import patterns, rows
from isoflop.launch.command.curve import CurvePoint, CurveReader
from isoflop.launch.command.results import Places, read_result
from isoflop.study.trainer import ResultTable
from made_events import write_events
from made_wandb import history, summary, write_wandb

NATS = "nats_per_token"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    values = {name: str(tmp_path / name) for name in ("checkpoint_dir", "log")}
    (tmp_path / "checkpoint_dir").mkdir()
    return Places(values={**values, "result": str(tmp_path / "result.json")}, folder=tmp_path)


def append(places: Places, name: str, text: str | bytes) -> None:
    path = Path(places.values["checkpoint_dir"], name)
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def steps(points: list[CurvePoint]) -> list[int]:
    return [point.step for point in points]


def test_what_a_trainer_reports_comes_with_all_its_numbers(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = CurveReader(ResultTable(unit=NATS), places, steps=3)
    assert reader.new_points() == []
    monkeypatch.setenv("ISOFLOP_RESULT", str(places.result))
    trainer.report(step=0, loss=2.5, tokens=8, lr=0.5)
    (point,) = reader.new_points()
    assert (point.step, point.loss, point.tokens, point.values) == (0, 2.5, 8, {"lr": 0.5})
    assert point.time_s is not None
    trainer.report(step=1, loss=math.nan, grad_norm=math.inf)
    with (places.result.with_name(trainer.CURVE_FILE)).open("a") as file:
        file.write('{"step": 2, "lo')
    (point,) = reader.new_points()
    assert (point.step, math.isnan(point.loss), point.values) == (1, True, {})
    assert reader.new_points() == []
    assert reader.last_points() == []


def test_a_csv_that_grows(places: Places) -> None:
    table = ResultTable(
        **{"csv": "{checkpoint_dir}/a.csv", "unit": NATS, "loss": "val", "curve": "train"},
        **{"step": "it", "tokens": "seen"},
    )
    reader = CurveReader(table, places, steps=3)
    assert reader.new_points() == []
    append(places, "a.csv", "it,seen,train,val\r\n0,8,2.5,\r\n1,16,2.")
    assert reader.new_points() == [CurvePoint(step=0, loss=2.5, tokens=8)]
    assert reader.new_points() == []
    append(places, "a.csv", "25,\r\n2,,,9\r\nit,seen,train,val\r\n1.0,16,nan,9\r\n")
    first, second = reader.new_points()
    assert first == CurvePoint(step=1, loss=2.25, tokens=16)
    assert (second.step, math.isnan(second.loss)) == (1, True)
    # An attempt that begins anew writes the file anew.
    Path(places.values["checkpoint_dir"], "a.csv").write_text("it,seen,train,val\n0,8,3.5,\n")
    assert reader.new_points() == [CurvePoint(step=0, loss=3.5, tokens=8)]


def test_a_log_of_which_groups_are_the_step_and_the_tokens(places: Places) -> None:
    table = ResultTable(
        **{"log": "{log}", "unit": NATS, "loss": r"val (\S+)"},
        curve=r"iter (?P<step>\d+): loss (?P<loss>[^,]+), (?P<tokens>\S+)",
    )
    reader = CurveReader(table, places, steps=3)
    log = Path(places.values["log"])
    log.write_text("val 9\niter 0: loss 2.5, 8\n\niter 1: loss oops, 8\nstep 2: val 2.25\niter 2: ")
    assert reader.new_points() == [CurvePoint(step=0, loss=2.5, tokens=8)]
    assert read_result(table, places).loss == 2.25


def test_a_log_whose_pattern_never_ends_is_read_no_more(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "TIMEOUT_S", 0.3)
    table = ResultTable(log="{log}", unit=NATS, loss=r"(?P<step>\d) ((a+)+)b")
    reader = CurveReader(table, places, steps=3)
    Path(places.values["log"]).write_text("1 " + "a" * 60 + "\n")
    assert reader.new_points() == []
    assert "more than 0.3 s" in str(reader.trouble)
    assert reader.last_points() == []


def test_points_are_thinned_but_never_the_end_nor_a_divergence(places: Places) -> None:
    table = ResultTable(jsonl="{checkpoint_dir}/a.jsonl", unit=NATS)
    reader = CurveReader(table, places, steps=2000)
    lines = [f'{{"step": {step}, "loss": {2.5 if step < 123 else "NaN"}}}' for step in range(138)]
    append(places, "a.jsonl", "\n".join(lines[:100]) + "\n")
    assert steps(reader.new_points()) == list(range(0, 100, 10))
    assert reader.newest is not None
    assert reader.newest.step == 99
    append(places, "a.jsonl", "\n".join(lines[100:]) + "\n")
    assert steps(reader.last_points()) == [100, 110, 120, 123, 133, 137]
    assert reader.last_points() == []


def test_much_that_is_new_comes_in_pieces(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_MAX_NEW_BYTES", 64)
    monkeypatch.setattr(rows, "MAX_BYTES", 400)
    table = ResultTable(jsonl="{checkpoint_dir}/a.jsonl", unit=NATS)
    reader = CurveReader(table, places, steps=3)
    append(places, "a.jsonl", "".join(f'{{"step": {n}, "loss": 1}}\n' for n in range(100)))
    first = steps(reader.new_points())
    assert 0 < len(first) <= 3
    # What lies far before the end of a large file is left out.
    assert first + steps(reader.last_points()) == list(range(first[0], 100))
    assert 75 < first[0] < 85


def test_the_curve_within_a_json_result(places: Places) -> None:
    places.result.write_text(
        '{"loss": 1, "tokens": 8, "curve": [{"step": 0, "loss": 2.5}, 7, {"step": "x", "loss": 1}, '
        '{"step": -1, "loss": 2}, {"step": 1e300, "loss": 2}, {"step": 2, "loss": "1.5"}]}'
    )
    reader = CurveReader(ResultTable(unit=NATS), places, steps=3)
    assert reader.new_points() == []
    assert reader.last_points() == [CurvePoint(step=0, loss=2.5), CurvePoint(step=2, loss=1.5)]


@pytest.mark.parametrize(
    ("log", "loss", "curve", "found", "points"),
    [
        pytest.param(
            "iter 250: loss 2.4612, time 1234.56ms, mfu 2.33%\n"
            "step 250: train loss 2.4544, val loss 2.4721\n",
            r"val loss (\S+)",
            r"iter (?P<step>\d+): loss (?P<loss>[\d.]+)",
            2.4721,
            [(250, 2.4612)],
            id="nanoGPT",
        ),
        pytest.param(
            "Step 00250 | Validation bpb: 1.0421\n"
            "step 00250/21400 (1.17%) | loss: 3.512345 | lrm: 1.00 | tok/sec: 1,023,456\n",
            r"Validation bpb: (?P<loss>\S+)",
            r"^step (?P<step>\d+)/.* loss: (\S+)",
            1.0421,
            [(250, 3.512345)],
            id="nanochat",
        ),
        pytest.param(
            "\x1b[0m[titan] INFO - \x1b[31mstep: 10  \x1b[32mloss:  4.56789  "
            "\x1b[38;2;180;60;0mgrad_norm:  1.2\x1b[39m\n",
            r"step: +(?P<step>\d+) +loss: +(?P<loss>\S+)",
            None,
            4.56789,
            [(10, 4.56789)],
            id="torchtitan",
        ),
        pytest.param(
            " iteration     1000/   50000 | lm loss: 2.400000E+00 | loss scale: 1.0 |\n"
            " validation loss at iteration 1000 | lm loss value: 2.345678E+00 | PPL: 1.0E+01\n",
            r"lm loss value: (\S+)",
            r"iteration +(?P<step>\d+)/.*lm loss: (?P<loss>\S+)",
            2.345678,
            [(1000, 2.4)],
            id="Megatron",
        ),
        pytest.param(
            "  1%|          | 1/100\r  2%|2         | 2/100\r{'loss': 3.5, 'epoch': 0.1}\n"
            "{'eval_loss': 2.5, 'eval_runtime': 1.2, 'epoch': 1.0}\n",
            r"'eval_loss': ([^,}]+)",
            None,
            2.5,
            [],
            id="Hugging Face",
        ),
    ],
)
def test_logs_as_trainers_write_them(
    log: str,
    loss: str,
    curve: str | None,
    found: float,
    points: list[tuple[int, float]],
    places: Places,
) -> None:
    Path(places.values["log"]).write_text(log)
    table = ResultTable(log="{log}", unit=NATS, loss=loss, curve=curve)
    assert read_result(table, places).loss == found
    there = CurveReader(table, places, steps=3).new_points()
    assert [(point.step, point.loss) for point in there] == points


# Trackers


def test_offline_runs_of_wandb(places: Places) -> None:
    folder = Path(places.values["checkpoint_dir"], "wandb")
    # A record of several blocks between, as a configuration may be.
    records = [history({"train/loss": 2.5, "seen": 8}, 0), summary({"x": "y" * 70_000})]
    records += [
        history({"val/loss": 2.25, "eval|acc": 0.5}, 1),
        summary({"val/loss": 9, "only": 7}),
    ]
    first = folder / "offline-run-20260101_000000-a" / "run-a.wandb"
    write_wandb(first, records)
    table = ResultTable(
        **{"wandb": "{checkpoint_dir}", "unit": NATS, "loss": "val/loss", "curve": "train/loss"},
        metrics={"acc": "eval.acc", "only": "only"},
        tokens="seen",
    )
    found = read_result(table, places)
    assert (found.loss, found.tokens, found.metrics) == (2.25, 8, {"acc": 0.5, "only": 7.0})
    reader = CurveReader(table, places, steps=9)
    assert reader.new_points() == [CurvePoint(step=0, loss=2.5, tokens=8)]
    write_wandb(first, [*records, history({"train/loss": 1.5}, 5), history({"train/loss": 1}, 6)])
    first.write_bytes(first.read_bytes()[:-3])
    assert reader.new_points() == [CurvePoint(step=5, loss=1.5)]
    # The attempt that goes on.
    later = folder / "offline-run-20260101_000001-a" / "run-a.wandb"
    write_wandb(later, [history({"train/loss": math.nan, "val/loss": math.nan}, 6)])
    (folder / "latest-run").symlink_to(first.parent)
    (point,) = reader.new_points()
    assert (point.step, math.isnan(point.loss)) == (6, True)
    assert math.isnan(read_result(table, places).loss)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:40], lambda data: b"", lambda data: b"a" * 50]
)
def test_a_damaged_file_of_wandb(damage: Callable[[bytes], bytes], places: Places) -> None:
    path = Path(places.values["checkpoint_dir"], "run-a.wandb")
    write_wandb(path, [history({"loss": 2.5}, 0)])
    path.write_bytes(damage(path.read_bytes()))
    table = ResultTable(wandb="{checkpoint_dir}", unit=NATS)
    with pytest.raises(ValueError, match=r"a file that W&B wrote|with a value in"):
        read_result(table, places)
    assert CurveReader(table, places, steps=9).new_points() == []


def test_any_byte_of_a_wandb_file_may_be_wrong(places: Places) -> None:
    path = Path(places.values["checkpoint_dir"], "run-a.wandb")
    write_wandb(path, [history({"loss": 2.5}, 0), history({"loss": 1.5}, 1)])
    data = path.read_bytes()
    table = ResultTable(wandb="{checkpoint_dir}", unit=NATS)
    found: set[Any] = set()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        points = CurveReader(table, places, steps=2).last_points()
        found.add(tuple(point.loss for point in points))
    # Its checksums leave out what is damaged and all that follows.
    assert found == {(), (2.5,), (2.5, 1.5)}


def test_scalars_of_tensorboard(places: Places) -> None:
    folder = Path(places.values["checkpoint_dir"], "runs", "Jan01_host")
    table = ResultTable(
        **{"tensorboard": "{checkpoint_dir}", "unit": NATS, "loss": "eval/loss"},
        **{"curve": "loss", "metrics": {"acc": "acc"}},
    )
    reader = CurveReader(table, places, steps=9)
    assert reader.new_points() == []
    write_events(folder, ("loss", 2.5, 0), ("eval/loss", 2.25, 7))
    assert reader.new_points() == [CurvePoint(step=0, loss=2.5)]
    assert reader.new_points() == []
    write_events(folder, ("acc", 0.25, 1), as_tensors=True)
    # An attempt that goes on, in a folder of its own.
    write_events(folder.with_name("later"), ("loss", 1.5, 1), ("eval/loss", 2.0, 5))
    assert reader.new_points() == [CurvePoint(step=1, loss=1.5)]
    found = read_result(table, places)
    assert (found.loss, found.metrics) == (2.0, {"acc": 0.25})
    with pytest.raises(ValueError, match="acc, eval/loss, loss"):
        read_result(ResultTable(tensorboard="{checkpoint_dir}", unit=NATS, loss="los"), places)


def test_without_tensorboard_the_extra_is_named(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    name = "tensorboard.backend.event_processing.event_accumulator"
    monkeypatch.setitem(sys.modules, name, None)
    table = ResultTable(tensorboard="{checkpoint_dir}", unit=NATS)
    with pytest.raises(ValueError, match="pip install 'isoflop\\[tensorboard\\]'"):
        read_result(table, places)
