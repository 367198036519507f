"""The check passes on what is right and fails on everything that can be wrong."""

from __future__ import annotations

import itertools
import subprocess

import pytest
import torch

from isoflop_kernels import command
from isoflop_kernels.check import __main__ as check
from isoflop_kernels.check import numerics
from isoflop_kernels.gathered_linear import bag, op
from isoflop_kernels.product_key_topk import op as selection

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def lines(monkeypatch, capsys):
    """Runs the check on the bag alone: its exit code and its lines, without the summary."""
    monkeypatch.setattr(command, "contenders", lambda operator: ["bag"])
    monkeypatch.setattr(check, "_registrations", lambda device, quick: iter(()))

    def run() -> tuple[int, list[str]]:
        code = check.main(["--quick", "--device", "cpu"])
        return code, capsys.readouterr().out.splitlines()[1:-1]

    return run


def fails(lines, *parts: str) -> None:
    code, found = lines()
    assert code == 1
    [failed] = [line for line in found if line.startswith("FAIL")]
    assert all(part in failed for part in parts), failed


def test_a_sound_machine_passes(capsys):
    assert check.main(["--quick", "--device", "cpu"]) == 0
    first, *found, last = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}" in first
    assert "compiler " in first
    assert last == "nothing failed"
    outcomes = {line[:4] for line in found}
    assert outcomes == {"PASS", "SKIP"}
    passed = "\n".join(line for line in found if line.startswith("PASS"))
    for part in ("bag float32 numbers", "bag repeats", "bag float32 exact", "registration bag"):
        assert part in passed


def test_every_precision_of_the_bag_is_within_its_limit():
    for dtype, limit in numerics.LIMITS.items():
        for case in numerics.CASES:
            error, name = numerics.worst_error("bag", case, dtype, CPU)
            assert error <= limit, (case, name)


def test_a_wrong_output_fails(lines, monkeypatch):
    right = op._IMPLEMENTATIONS["bag"]
    monkeypatch.setitem(op._IMPLEMENTATIONS, "bag", lambda *args: right(*args) * (1 + 4e-6))
    fails(lines, "bag float32 numbers", "is off by 4", "(limit 1e-06)", "Case(T=7")


def test_a_wrong_gradient_fails_under_its_name(lines, monkeypatch):
    right = bag.gate_backward

    def wrong(*args):
        dh, dscore = right(*args)
        return dh, dscore * 1.01

    monkeypatch.setattr(bag, "gate_backward", wrong)
    fails(lines, "dscore is off by 1.0e-02")


def test_memory_that_nobody_wrote_fails(lines, monkeypatch):
    right = op._IMPLEMENTATIONS["bag"]

    def forgetful(*args):
        y = right(*args)
        hole = torch.empty_like(y)
        return torch.where(torch.arange(y.shape[0])[:, None] == 0, hole, y)

    monkeypatch.setitem(op._IMPLEMENTATIONS, "bag", forgetful)
    code, found = lines()
    assert code == 1
    assert "y is off by inf" in found[0]


def test_one_result_that_changes_fails(lines, monkeypatch):
    right, count = bag.gate_backward, itertools.count()

    def unsteady(*args):
        dh, dscore = right(*args)
        return dh, dscore * (1 + 2e-7 * (next(count) % 2))

    monkeypatch.setattr(bag, "gate_backward", unsteady)
    fails(lines, "bag repeats", "a second run gave other bits")


def test_a_selection_that_breaks_ties_otherwise_fails(lines, monkeypatch):
    right = selection._PAIRS["bag"]
    monkeypatch.setitem(selection._PAIRS, "bag", lambda sim, k: right(sim.flip(3), k))
    fails(lines, "product_key_topk bag float32 exact", "other experts")


def test_another_dtype_fails(lines, monkeypatch):
    right = op._IMPLEMENTATIONS["bag"]
    monkeypatch.setitem(op._IMPLEMENTATIONS, "bag", lambda *args: right(*args).double())
    fails(lines, "TypeError: y came as torch.float64")


def test_whatever_is_raised_fails_and_the_other_checks_still_run(lines, monkeypatch):
    def broken(*args):
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setitem(selection._PAIRS, "bag", broken)
    fails(lines, "RuntimeError: no kernel image")
    assert lines()[1][-1].startswith("SKIP  compiled code for")


def test_compiled_code_is_checked_without_the_interpreter(monkeypatch):
    calls = []

    def run(command, env, **kwargs):
        calls.append((command, env))
        return subprocess.CompletedProcess(command, 1, "sm_80 dot 1\nsm_80 sum 2\n", "")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(check.subprocess, "run", run)
    monkeypatch.setattr(command, "has_triton", lambda: True)
    assert check.outcome_of(check._compiled("sm_80", quick=False)) == (
        "FAIL",
        "spills or atomics, see python -m isoflop_kernels.aot sm_80",
    )
    [(arguments, environment)] = calls
    assert arguments[1:] == ["-m", "isoflop_kernels.aot", "sm_80"]
    assert "TRITON_INTERPRET" not in environment


def test_clean_code_passes_with_its_number_of_kernels(monkeypatch):
    result = subprocess.CompletedProcess([], 0, "target kernel\nsm_80 dot 1\nsm_80 sum 2\n", "")
    monkeypatch.setattr(check.subprocess, "run", lambda *args, **kwargs: result)
    monkeypatch.setattr(command, "has_triton", lambda: True)
    outcome = check.outcome_of(check._compiled("sm_80", quick=False))
    assert outcome == ("PASS", "2 kernels without spills or atomics")


@pytest.mark.parametrize(
    ("without", "reason"),
    [("triton", "triton is not installed"), ("gpu", "needs GPU or TRITON_INTERPRET=1")],
)
def test_what_the_machine_lacks_is_skipped_with_the_reason(without, reason, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(command, "has_triton", lambda: without != "triton")
    run = check._numbers("triton-v1", numerics.QUICK, torch.float32, CPU)
    assert check.outcome_of(run) == ("SKIP", reason)


@pytest.mark.parametrize(
    ("triton", "numpy", "fails"),
    [("3.6.0", "2.4.0", True), ("3.6.0", "2.3.5", False), ("3.7.1", "2.4.6", False)],
)
def test_an_interpreter_that_cannot_work_says_so(triton, numpy, fails, monkeypatch):
    versions = {"triton": triton, "numpy": numpy}
    monkeypatch.setattr(command, "has_triton", lambda: True)
    monkeypatch.setattr(command.importlib.metadata, "version", versions.get)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reason = command.unavailable("triton-v1", CPU)
    assert (reason is not None and "numpy 2.4: needs an older numpy" in reason) == fails


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--targets", "sm_70"], "--targets sm_70: must be all or of sm_80"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--fast"], "unrecognized arguments"),
    ],
)
def test_bad_options_say_so_in_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        check.main(options)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_all_targets_are_those_of_the_table():
    assert check.parse(["--targets", "all"]).targets == [
        "sm_80",
        "sm_90",
        "sm_100",
        "gfx942",
        "gfx90a",
    ]
