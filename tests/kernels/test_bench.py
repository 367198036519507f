"""The bench's byte model against counts by hand, its arithmetic, its file and its refusals."""

# T tokens, D width, C channels, K experts chosen per channel, N sub-keys per half

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from isoflop_kernels import command, product_key_topk
from isoflop_kernels.bench import __main__ as bench
from isoflop_kernels.bench import cases, measure, memory, suite, traffic
from isoflop_kernels.bench.cases import MODES, RIVALS, Shape, make_cases, two_topk
from isoflop_kernels.bench.measure import Machine
from isoflop_kernels.bench.table import Row

CPU = torch.device("cpu")
TINY = Shape(name="tiny", T=10, D=64, C=2, K=4, N=5)
MACHINE = Machine(bytes_per_second=1e9, flops_per_second=1e10)
SETTING = suite.Setting(
    device=CPU,
    dtype=torch.float32,
    modes=MODES,
    implementations=["bag", "reference"],
    repeats=1,
    with_memory=False,
    machine=MACHINE,
)
MODELLED = ("reference", "bag", "cpp", "triton-v1", "triton-v2", "mlp")


def test_bytes_of_triton_v1_are_those_counted_by_hand():
    """80 choices, rows of 128 bytes, tokens of 1,280 bytes in all, tables of 6,400 bytes."""
    kernels = {k.name: k for k in traffic.kernels("triton-v1", TINY, 2, "both")}
    rows = 80 * 128
    assert kernels["h, z"].reads == rows + 80 * (4 + 2) + 2 * 1280
    assert kernels["h, z"].writes == 80 * 8
    for name in ("y", "dx"):
        assert kernels[name].reads == rows + 80 * 8
        assert kernels[name].writes == 1280
    expert = kernels["dh, dscore, dw_in, dw_out"]
    assert expert.reads == 2 * rows + 80 * (12 + 2) + 6400
    assert expert.writes == 80 * (4 + 2) + 2 * 6400
    assert len(kernels) == 4


def test_wide_rows_cost_triton_v1_a_fourth_gather():
    def gathers(width: int) -> float:
        shape = dataclasses.replace(TINY, D=width)
        kernels = traffic.kernels("triton-v1", shape, 2, "backward")
        return sum(k.gathered for k in kernels) / (shape.num_choices * width * 2)

    assert gathers(1024) == 3
    assert gathers(1025) == 4


def test_triton_v2_gathers_a_row_per_group_of_a_token():
    """Of 8 experts chosen by product keys, 4 share the first sub-key with another."""
    shape = Shape(name="", T=100, D=64, C=2, K=8, N=28)
    dot, y = traffic.kernels("triton-v2", shape, 2, "forward")
    assert dot.gathered == 100 * 2 * 4 * 64 * 2
    assert y == traffic.kernels("triton-v1", shape, 2, "forward")[1]


def test_bytes_of_the_bag_are_those_counted_by_hand():
    rows = 80 * 256
    h, y, dz, dx, dw_in, dw_out = traffic.kernels("bag", TINY, 4, "both")
    assert (h.reads, h.writes) == (rows + 80 * 12 + 2560, 80 * 8)
    assert (y.reads, y.writes) == (rows + 80 * 8, 2560) == (dx.reads, dx.writes)
    assert (dz.reads, dz.writes) == (rows + 80 * 16 + 2560, 80 * 12)
    assert (dw_in.reads, dw_in.writes) == (rows + 80 * 8, 12800) == (dw_out.reads, dw_out.writes)


def test_half_precision_is_widened_once_per_pass():
    used = 2 * 2 * 25 * 64 + 10 * 64  # both tables and the tokens
    first = traffic.kernels("bag", TINY, 2, "forward")[0]
    assert (first.reads, first.writes) == (2 * used, 4 * used)


def test_eager_writes_what_it_gathers_and_scatters_as_much():
    gather, *_ = traffic.kernels("reference", TINY, 4, "forward")
    *_, scatter = traffic.kernels("reference", TINY, 4, "backward")
    assert gather.writes == 2 * 80 * 256
    assert scatter.writes == 2 * 80 * 256 + 2 * 12800


@pytest.mark.parametrize(("contender", "b"), list(itertools.product(MODELLED, (2, 4))))
def test_no_kernel_moves_less_than_it_gathers(contender, b):
    parts = [traffic.moved_bytes(contender, TINY, b, mode) for mode in MODES]
    assert parts[0] + parts[1] == parts[2]
    for mode in MODES:
        kernels = traffic.kernels(contender, TINY, b, mode)
        assert all(k.reads >= k.gathered for k in kernels)
        if contender not in ("mlp", "triton-v2"):
            assert sum(k.gathered for k in kernels) >= traffic.gathered_bytes(TINY, b, mode)


def test_an_implementation_without_a_model_has_no_bytes():
    assert traffic.kernels("topk", TINY, 4, "both") is None
    assert traffic.moved_bytes("topk", TINY, 4, "both") is None


def test_least_bytes_are_arguments_and_results_once():
    tokens, choices, table = 10 * 64 * 4, 80 * (4 + 4), 2 * 25 * 64 * 4
    assert traffic.least_bytes(TINY, 4, "forward") == 2 * tokens + choices + 2 * table
    assert traffic.least_bytes(TINY, 4, "backward") == 3 * tokens + choices + 4 * table + 80 * 4
    few = dataclasses.replace(TINY, T=1)  # 8 choices cannot touch all 50 rows
    assert traffic.least_bytes(few, 4, "forward") == 2 * 256 + 8 * 8 + 2 * 8 * 256


def test_the_roofline_is_the_slower_of_moving_and_computing():
    assert MACHINE.bound_seconds(2 * 10**9, 10**10) == 2
    assert MACHINE.bound_seconds(10**9, 3 * 10**10) == 3


def test_fractions_are_bounds_over_the_median_time():
    row = suite._describe("gathered_linear", TINY, "bag", "forward", SETTING)
    assert row.flops == 4 * 10 * 2 * 4 * 64
    samples = measure.Samples([0.5, 0.25, 1.0], [2.0, 3.0, 4.0])
    found = suite._with_times(row, samples, 77, MACHINE)
    assert (found.milliseconds, found.min_milliseconds, found.max_milliseconds) == (500, 250, 1000)
    assert (found.wall_milliseconds, found.repeats, found.peak_bytes) == (3000, 3, 77)
    assert found.gather_fraction == 2 * 80 * 256 / 1e9 / 0.5
    assert found.roofline_fraction == traffic.least_bytes(TINY, 4, "forward") / 1e9 / 0.5


def test_calls_are_timed_in_turns_and_slow_ones_less_often(monkeypatch):
    order = []
    samples = measure.time_calls([lambda: order.append("a"), lambda: order.append("b")], 5, CPU)
    assert "".join(order) == "ab" * 6
    assert [len(s.seconds) for s in samples] == [5, 5]
    monkeypatch.setattr(measure, "SECONDS_PER_CALL", 0.0)
    samples = measure.time_calls([lambda: None], 5, CPU)
    assert len(samples[0].seconds) == 3


def test_the_dense_rival_counts_as_many_flops():
    counts = set()
    for case in make_cases("gathered_linear", TINY, ["mlp", "bag"], torch.float32, CPU):
        with FlopCounterMode(display=False) as counter:
            case.call("both")()
        counts.add(counter.get_total_flops())
    assert counts == {TINY.flops("both")}


@pytest.mark.parametrize("operator", RIVALS)
def test_every_mode_of_every_contender_runs(operator):
    names = [RIVALS[operator], "reference", "bag"]
    cases = make_cases(operator, TINY, names, torch.bfloat16, CPU)
    assert [case.contender for case in cases] == names
    for case, mode in itertools.product(cases, MODES):
        call = case.call(mode)
        call()
        assert call() is not None


def test_contenders_get_the_same_inputs_and_agree():
    cases = make_cases("gathered_linear", TINY, ["reference", "bag"], torch.float32, CPU)
    results = [case.call("both")() for case in cases]
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


def test_two_topk_select_the_same_scores():
    sim = torch.randn(20, 2, 3, 9)
    scores, experts = two_topk(sim, 4)
    expected_scores, expected_experts = product_key_topk(sim, 4)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(experts.int(), expected_experts)


@pytest.mark.slow
def test_eager_holds_every_gathered_row_and_the_bag_none():
    shape = Shape(name="", T=512, D=64, C=8, K=8, N=12)
    rows = shape.num_choices * shape.D * 4
    peaks = {
        name: memory.peak_bytes("gathered_linear", shape, name, torch.float32, CPU)
        for name in ("reference", "bag")
    }
    assert peaks["reference"] > 2 * rows
    assert 0 < peaks["bag"] < rows
    for name, peak in peaks.items():
        assert peak < memory.predicted_bytes("gathered_linear", shape, name, 4) * 1.1


def test_peaks_of_earlier_work_are_forgotten():
    [case] = make_cases("gathered_linear", TINY, ["bag"], torch.float32, CPU)
    torch.ones(2**25)  # 128 MB, freed at once
    assert memory._resident_peak(case, case) < 2**26


def test_a_failing_measurement_of_memory_says_why(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError: no room\n")
    monkeypatch.setattr(memory.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(RuntimeError, match="measuring the memory of bag failed: MemoryError: no"):
        memory.peak_bytes("gathered_linear", TINY, "bag", torch.float32, CPU)


def test_what_does_not_fit_is_skipped_and_holds_nulls(monkeypatch):
    shape = dataclasses.replace(TINY, T=500)
    needed = memory.predicted_bytes("gathered_linear", shape, "reference", 4)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    rows = suite.measure_shape("gathered_linear", shape, SETTING)
    by_contender = {name: [r for r in rows if r.contender == name] for name in ("bag", "reference")}
    for row in by_contender["reference"]:
        assert row.skipped.startswith("needs about 0.0 GB")
        assert row.milliseconds is row.roofline_fraction is row.repeats is row.peak_bytes is None
    assert all(row.skipped is None and row.milliseconds > 0 for row in by_contender["bag"])


def test_the_interpreter_is_never_timed(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reason = suite.reason_to_skip("gathered_linear", TINY, "triton-v1", SETTING)
    assert reason == "the interpreter's times mean nothing"


@pytest.fixture
def small_machine(monkeypatch):
    monkeypatch.setitem(measure.TRIAD_NUMBERS, "cpu", 1000)
    monkeypatch.setitem(measure.MATMUL_SIZE, "cpu", 8)
    monkeypatch.setitem(cases.SMALL, "tiny", TINY)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_run_prints_a_table_and_writes_every_column(small_machine, tmp_path, capsys):
    path = tmp_path / "out.parquet"
    options = ["--device", "cpu", "--shapes", "tiny", "--scales", "none", "--repeats", "2"]
    assert bench.main([*options, "--no-memory", "--out", str(path)]) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 120
    assert "triton-v2  skipped: " in output
    table = pq.read_table(path)
    assert table.column_names == [field.name for field in dataclasses.fields(Row)]
    assert table.schema.metadata[b"torch"].decode() == torch.__version__
    rows = table.to_pylist()
    assert {row["operator"] for row in rows} == set(RIVALS)
    for row in rows:
        measured = row["skipped"] is None
        assert (row["milliseconds"] is not None) == measured
        assert (row["roofline_fraction"] is not None) == measured
        assert row["peak_bytes"] is None
        assert (row["gathered_bytes"] is None) == (
            row["operator"] != "gathered_linear" or row["contender"] == "mlp"
        )
        assert not measured or row["milliseconds"] > 0
    assert list(tmp_path.iterdir()) == [path]


def test_lines_are_in_the_file_before_the_next_shape_is_measured(
    small_machine, tmp_path, capsys, monkeypatch
):
    path, seen = tmp_path / "out.jsonl", []
    path.write_text("of another run\n")

    def measure_and_look(operator, shape, setting):
        seen.append(len(path.read_text().splitlines()))
        if len(seen) == 3:
            raise RuntimeError("the third kills it")
        return suite.measure_shape(operator, shape, setting)

    monkeypatch.setattr(bench, "measure_shape", measure_and_look)
    monkeypatch.setitem(cases.SMALL, "again", dataclasses.replace(TINY, name="again"))
    options = ["--device", "cpu", "--shapes", "tiny,again", "--scales", "none", "--repeats", "1"]
    with pytest.raises(RuntimeError, match="the third"):
        bench.main([*options, "--modes", "forward", "--no-memory", "--out", str(path)])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert seen[0] == 0 < seen[1] < seen[2] == len(rows)
    assert {row["shape"] for row in rows} == {"tiny", "again"}
    assert all(row["environment"]["torch"] == torch.__version__ for row in rows)
    names = {field.name for field in dataclasses.fields(Row)}
    assert all(set(row) == names | {"environment"} for row in rows)


def test_asked_for_implementations_run_alone(small_machine, capsys):
    options = ["--shapes", "tiny", "--scales", "none", "--operators", "gathered_linear"]
    options += ["--modes", "forward", "--repeats", "1", "--no-memory", "--device", "cpu"]
    bench.main([*options, "--implementations", "bag"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["mlp", "bag"]
    assert command.wanted("triton-v2", ["triton"])
    assert not command.wanted("triton-v2", ["triton-v1"])


def test_bytes_are_printed_without_measuring(capsys, monkeypatch):
    monkeypatch.setattr(bench, "measure_machine", None)
    bench.main(["--bytes", "--shapes", "none", "--scales", "6", "--implementations", "triton-v1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:22].split() for line in lines[-4:]][1:2] == [["triton-v1", "y"]]


BAD_OPTIONS = {
    "scale": (["--scales", "9"], "--scales 9: must be of 2, 3, 4"),
    "shape": (["--shapes", "huge"], "--shapes huge: must be of micro-16"),
    "mode": (["--modes", "sideways"], "--modes sideways: must be of forward"),
    "implementation": (["--implementations", "fast"], "--implementations fast: must be of bag"),
    "operator": (["--operators", "sum"], "--operators sum: must be of gathered_linear"),
    "tokens": (["--tokens", "0"], "must be at least 1"),
    "device": (["--device", "tpu"], "must be cpu, cuda or cuda:N"),
    "dtype": (["--dtype", "int8"], "invalid choice"),
    "format": (["--out", "/tmp/rows.csv"], "must end in .parquet or .jsonl"),
    "folder": (["--out", "/nowhere/at/all.parquet"], "no folder that can be written to"),
    "unknown": (["--speed"], "unrecognized arguments"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_say_so_in_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(options)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_file_needs_pyarrow_before_anything_runs(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--out", str(tmp_path / "out.parquet")])
    assert stopped.value.code == 2
    assert "needs the package pyarrow" in capsys.readouterr().err


def test_triton_versions_are_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv("ISOFLOP_KERNELS_TRITON", "v1")
    with command.using("triton-v2"):
        assert os.environ["ISOFLOP_KERNELS_TRITON"] == "v2"
    assert os.environ["ISOFLOP_KERNELS_TRITON"] == "v1"
    monkeypatch.delenv("ISOFLOP_KERNELS_TRITON")
    with command.using("triton-v1"):
        assert os.environ["ISOFLOP_KERNELS_TRITON"] == "v1"
    assert "ISOFLOP_KERNELS_TRITON" not in os.environ
