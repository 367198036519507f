"""Metrics as lines, tables and sinks; what goes wrong there never reaches the run."""

from __future__ import annotations

import errno
import functools
import json
import logging
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from isoflop.errors import UserError
from isoflop.launch import metrics as metrics_module
from isoflop.launch.metrics import METRICS, USAGE, MetricsLog, write_tables
from isoflop.launch.sinks import About, Sink, check_names, open_sinks
from isoflop.tables import read_table
from isoflop.train.hooks import StepMetrics
from isoflop.train.throughput import achieved


def at(step: int, **changes: Any) -> StepMetrics:
    values = {
        "step": step,
        "loss": 3.0 - step / 100,
        "grad_norm": 1.0,
        "lr": 1e-3,
        "tokens": 64 * (step + 1),
        "wall_s": 0.5 * (step + 1),
    }
    return StepMetrics(**(values | changes))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def log_in(folder: Path, attempt: int = 1, steps: int = 10, **more: Any) -> MetricsLog:
    return MetricsLog(folder / "metrics.jsonl", attempt, steps, **more)


USAGE_ROW = {
    "layer": 0,
    "channel": 0,
    "num_experts": 4,
    "num_choices": 8,
    "fraction_used": 0.5,
    "entropy": 0.25,
    "cv": 1.0,
    "ever_used": 0.75,
}
USAGE_ROWS = [USAGE_ROW, {**USAGE_ROW, "channel": 1}, {**USAGE_ROW, "channel": None, "cv": 0.5}]


def test_rows_are_there_while_the_run_is_at_work(tmp_path: Path) -> None:
    log = log_in(tmp_path, attempt=3, steps=1001)
    for step in range(1001):
        log.write(at(step))
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [*range(0, 1000, 5), 1000]
    assert rows[0] == {
        "attempt": 3,
        "step": 0,
        "loss": 3.0,
        "grad_norm": 1.0,
        "lr": 1e-3,
        "tokens": 64,
        "wall_s": 0.5,
    }
    log.close()


def test_rates_are_those_since_the_row_before(tmp_path: Path) -> None:
    rate = functools.partial(achieved, flops_per_token=10.0, peak_flops=2560.0)
    # A resumed run: its tokens began long ago, its seconds now.
    log = log_in(tmp_path, steps=800, rate=rate)
    for step in range(400, 412):
        log.write(at(step, wall_s=0.5 * (step - 399)))
    first, second, third = lines(tmp_path)
    assert [first[key] for key in ("tokens_per_s", "flops_per_s", "share_of_peak")] == [None] * 3
    for row in (second, third):
        assert (row["tokens_per_s"], row["flops_per_s"]) == (128.0, 1280.0)
        assert row["share_of_peak"] == 0.5
    log.close()


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.event("evaluation", {"step": 1, "loss": float("inf"), "rows": [{"cv": float("nan")}]})
    (row,) = lines(tmp_path)
    assert (row["loss"], row["rows"]) == (None, [{"cv": None}])
    log.close()


def test_a_line_that_a_crash_cut_off_is_closed_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"attempt": 1, "st')
    log = log_in(tmp_path, attempt=2)
    log.write(at(0))
    log.close()
    first, second = path.read_text().splitlines()
    assert first == '{"attempt": 1, "st'
    assert json.loads(second)["step"] == 0


class FullDisk:
    """A file of which some writes go through, some in part and some not at all."""

    def __init__(self, file: Any, outcomes: list[int | None]) -> None:
        self._file = file
        self._outcomes = outcomes

    def write(self, line: bytes) -> int:
        outcome = self._outcomes.pop(0)
        if outcome is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(line[:outcome] if outcome >= 0 else line)

    def close(self) -> None:
        self._file.close()


def test_a_full_disk_costs_rows_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_in(tmp_path)
    log._lines._file = FullDisk(log._lines._file, [-1, 9, None, None, -1, -1])  # type: ignore[assignment]
    troubles = []
    for step in range(6):
        log.write(at(step))
        troubles.append(log.trouble)
    log.close()
    full = "No space left on device"
    assert troubles == [None, "the file system took a part of a row", full, full, None, None]
    assert [r.getMessage() for r in caplog.records] == [
        "metrics are lost, training goes on: [Errno 28] No space left on device"
    ]
    write_tables(tmp_path)
    assert [row["step"] for row in read_table(tmp_path / "metrics.parquet", METRICS)] == [0, 4, 5]


def write_two_attempts(folder: Path) -> None:
    first = log_in(folder, attempt=1)
    for step in range(6):
        first.write(at(step))
    first.event("evaluation", {"step": 3, "loss": 2.5, "loss_se": 0.1})
    first.event("usage", {"step": 3, "split": "train", "rows": USAGE_ROWS})
    first.close()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"attempt": 1, "step": 6, "lo')
    second = log_in(folder, attempt=2)
    second.event("resumed", {"step": 3})
    for step in range(3, 10):
        # Bit for bit what the first attempt did; only the clock is another.
        second.write(at(step, wall_s=9.0 + step))
    second.event("evaluation", {"step": 3, "loss": 2.5, "loss_se": 0.1})
    second.event("usage", {"step": 3, "split": "train", "rows": USAGE_ROWS})
    second.event("usage", {"step": 9, "split": "heldout", "rows": USAGE_ROWS[:1]})
    second.event("spike", {"step": 8, "loss": 9.0})
    second.close()


def test_tables_have_each_step_once_as_the_newest_attempt_did_it(tmp_path: Path) -> None:
    write_two_attempts(tmp_path)
    write_tables(tmp_path)
    table = read_table(tmp_path / "metrics.parquet", METRICS)
    assert [row["step"] for row in table] == list(range(10))
    assert [row["attempt"] for row in table] == [1] * 3 + [2] * 7
    assert [row["wall_s"] for row in table] == [0.5, 1.0, 1.5, *(9.0 + s for s in range(3, 10))]
    assert [row["heldout_loss"] for row in table] == [None] * 3 + [2.5] + [None] * 6
    assert {row["tokens_per_s"] for row in table} == {None}
    usage = read_table(tmp_path / "usage.parquet", USAGE)
    assert [(r["step"], r["attempt"], r["split"], r["channel"]) for r in usage] == [
        (3, 2, "train", 0),
        (3, 2, "train", 1),
        (3, 2, "train", None),
        (9, 2, "heldout", 0),
    ]
    assert [row["cv"] for row in usage] == [1.0, 1.0, 0.5, 1.0]


def test_tables_are_typed_and_versioned(tmp_path: Path) -> None:
    write_two_attempts(tmp_path)
    write_tables(tmp_path)
    for name, schema in (("metrics", METRICS), ("usage", USAGE)):
        stored = pq.read_schema(tmp_path / f"{name}.parquet")
        assert stored.equals(schema.arrow(), check_metadata=True)


def test_an_evaluated_step_that_was_not_logged_has_a_row(tmp_path: Path) -> None:
    log = log_in(tmp_path, steps=1000)
    for step in range(8):
        log.write(at(step))
    log.event("evaluation", {"step": 7, "loss": 2.5, "loss_se": None})
    log.close()
    write_tables(tmp_path)
    *_, last = read_table(tmp_path / "metrics.parquet", METRICS)
    assert (last["step"], last["attempt"], last["loss"], last["heldout_loss"]) == (7, 1, None, 2.5)
    assert not (tmp_path / "usage.parquet").exists()


def test_tables_that_cannot_be_written_are_said_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_two_attempts(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics_module, "write_table", full)
    write_tables(tmp_path)
    (record,) = caplog.records
    assert "their lines are in metrics.jsonl" in record.getMessage()


def test_a_line_of_another_making_costs_the_tables_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"attempt": 1}\n')
    write_tables(tmp_path)
    (record,) = caplog.records
    assert record.getMessage().startswith("no tables of metrics")


class Recorded:
    """A backend that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Mapping[str, float]]] = []
        self.closed = False
        self.thread = threading.current_thread()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, values))

    def close(self) -> None:
        self.closed = True


def opened(open_backend: Callable[[], Any], **more: Any) -> tuple[Sink, list[Any]]:
    backends: list[Any] = []

    def open_and_keep() -> Any:
        backends.append(open_backend())
        return backends[-1]

    return Sink("made", open_and_keep, **more), backends


def test_a_sink_gets_numbers_by_name_in_its_own_thread(tmp_path: Path) -> None:
    sink, backends = opened(Recorded)
    log = log_in(tmp_path, sinks=[sink])
    log.write(at(0, grad_norm=float("nan")))
    log.event("spike", {"step": 4, "loss": 9.0, "median": 2.0, "limit": 2.5})
    log.event("resumed", {})
    log.event("usage", {"step": 9, "split": "train", "rows": USAGE_ROWS})
    log.event("usage", {"step": 9, "split": "heldout", "rows": USAGE_ROWS[:1]})
    log.close()
    (backend,) = backends
    assert backend.closed
    assert backend.thread is not threading.current_thread()
    assert backend.rows[0] == (
        0,
        {"train/loss": 3.0, "train/lr": 1e-3} | {"train/tokens": 64.0, "train/wall_s": 0.5},
    )
    assert backend.rows[1] == (4, {"spike/loss": 9.0, "spike/median": 2.0, "spike/limit": 2.5})
    step, whole = backend.rows[2]
    assert step == 9
    assert whole["usage/train/layer0/cv"] == 0.5
    assert backend.rows[3][1]["usage/heldout/layer0/cv"] == 1.0
    assert len(backend.rows) == 4


def test_a_sink_that_hangs_blocks_nobody_and_counts_what_it_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()

    class Hangs(Recorded):
        def write(self, step: int, values: Mapping[str, float]) -> None:
            release.wait()

    sink, _ = opened(Hangs, queue_rows=3)
    begin_s = time.monotonic()
    while sink.num_dropped < 100:
        sink.step(0, {"loss": 1.0})
    sink.close(timeout_s=0.05)
    assert time.monotonic() - begin_s < 5.0
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "made did not finish within 0.05 s; given up",
        "made was too slow: 100 rows were dropped",
    ]
    release.set()


@pytest.mark.parametrize(
    "error", [ImportError("no module named made"), SystemExit(3), ValueError()]
)
@pytest.mark.parametrize("when", ["open", "write", "close"])
def test_a_sink_that_fails_is_off_with_one_warning(
    caplog: pytest.LogCaptureFixture, error: BaseException, when: str
) -> None:
    def fail() -> None:
        raise error

    class Fails(Recorded):
        def __init__(self) -> None:
            super().__init__()
            if when == "open":
                fail()

        def write(self, step: int, values: Mapping[str, float]) -> None:
            if when == "write":
                fail()

        def close(self) -> None:
            fail()

    sink, _ = opened(Fails, queue_rows=2)
    for step in range(50):
        sink.step(step, {"loss": 1.0})
        if when != "close":
            sink._thread.join(timeout=0.1)
    sink.close()
    warned = [r for r in caplog.records if "is off" in r.getMessage()]
    assert len(warned) == 1
    assert warned[0].getMessage().startswith(f"made is off: {type(error).__name__}:")
    assert not sink._thread.is_alive()


def test_an_unknown_sink_is_refused() -> None:
    with pytest.raises(UserError, match="sinks = 'mlflow': must be one of tensorboard, wandb"):
        check_names(["tensorboard", "mlflow"])


@pytest.fixture
def about(tmp_path: Path) -> About:
    return About(study="made", run_id="ab" * 32, folder=tmp_path, spec={"family": "mlp"})


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_library_that_is_not_installed_is_one_warning(
    name: str,
    about: About,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # What Python makes of a package that is not there.
    monkeypatch.setitem(sys.modules, name, None)
    for module in ("torch.utils.tensorboard", f"isoflop.launch.sinks.{name}"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    log = log_in(tmp_path, sinks=open_sinks([name], about))
    log.write(at(0))
    log.close()
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage().startswith(f"{name} is off: ")
    assert len(lines(tmp_path)) == 1


def test_wandb_continues_the_run_and_gets_steps_as_values(
    about: About, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []

    class Run:
        def define_metric(self, name: str, **more: Any) -> None:
            calls.append(("define", (name, more)))

        def log(self, values: Mapping[str, float]) -> None:
            calls.append(("log", values))

        def finish(self) -> None:
            calls.append(("finish", None))

    def init(**options: Any) -> Run:
        calls.append(("init", options))
        return Run()

    made = types.ModuleType("wandb")
    made.init, made.Settings = init, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", made)
    monkeypatch.delitem(sys.modules, "isoflop.launch.sinks.wandb", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    (sink,) = open_sinks(["wandb"], about)
    sink.step(7, {"step": 7, "loss": 2.0, "rate": None})
    sink.close()
    (_, options), *rest = calls
    assert (options["project"], options["id"], options["resume"]) == ("made", "ab" * 6, "allow")
    assert options["config"] == {"family": "mlp"}
    assert rest[-2:] == [("log", {"train/loss": 2.0, "step": 7}), ("finish", None)]


def test_tensorboard_files_can_be_read_back(about: About) -> None:
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        # Its own, of its own libraries.
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        for steps, loss in ((range(6), 3.0), (range(4, 8), 2.0)):
            (sink,) = open_sinks(["tensorboard"], about)
            for step in steps:
                sink.step(step, {"loss": loss + step})
            sink.close(timeout_s=60.0)
        events = EventAccumulator(str(about.folder / "tensorboard"))
        events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("train/loss")]
    # The second attempt began at step 4 and takes the place of what was shown from there on.
    assert points == [*((s, 3.0 + s) for s in range(4)), *((s, 2.0 + s) for s in range(4, 8))]
