"""The page says what was predicted and measured, what failed, and what did not run."""

from __future__ import annotations

import dataclasses

from isoflop.gpu_report.page import Head, is_good, page, verdict
from isoflop.gpu_report.records import Row

HEAD = Head(
    device="cuda",
    budget_s=540,
    elapsed_s=100.4,
    planned=["machine", "kernels"],
    done=["machine", "kernels"],
)
MACHINE = Row(stage="machine", case="machine", what="name", note="NVIDIA H200")
KERNEL = Row(
    stage="kernels",
    case="scale 6",
    what="both",
    unit="ms",
    predicted=2.0,
    measured=2.5,
    details={"roofline_fraction": 0.61},
)


def test_a_line_has_predicted_measured_ratio_and_roofline():
    text = page(HEAD, [MACHINE, KERNEL])
    assert "| scale 6 | both | 2 ms | 2.5 ms | 1.25 | 61 % |  |" in text
    assert "Complete: all of it ran and nothing failed, in 100 of 540 s." in text
    assert is_good(HEAD, [MACHINE, KERNEL])
    assert "rehearsal" not in text


def test_a_rehearsal_says_so_in_bold():
    text = page(dataclasses.replace(HEAD, device="cpu"), [MACHINE])
    [line] = [line for line in text.splitlines() if "rehearsal" in line]
    assert line.startswith("**")
    assert line.endswith("**")


def test_what_failed_or_was_cut_is_not_good_and_is_counted():
    for outcome in ("failed", "cut"):
        rows = [MACHINE, KERNEL, Row(stage="kernels", case="x", outcome=outcome, note="why | so")]
        assert not is_good(HEAD, rows)
        text = page(HEAD, rows)
        assert "**Not all of it is right: 1 results failed or were cut" in text
        assert "why \\| so" in text


def test_what_was_skipped_for_a_reason_is_good():
    rows = [MACHINE, KERNEL, Row(stage="kernels", case="x", outcome="skipped", note="too large")]
    assert is_good(HEAD, rows)
    assert "skipped: too large" in page(HEAD, rows)


def test_a_stage_without_a_row_is_not_good():
    assert not is_good(HEAD, [MACHINE])
    assert "Nothing was run." in page(HEAD, [MACHINE])


def test_a_page_between_stages_says_what_is_to_come():
    head = dataclasses.replace(HEAD, done=["machine"])
    assert "Running, 100 of 540 s so far; still to come: kernels." in page(head, [MACHINE])
    assert "| not yet |" in page(head, [MACHINE])
    assert not is_good(head, [MACHINE, KERNEL])


def test_a_command_that_was_ended_says_by_what():
    head = dataclasses.replace(HEAD, stopped="SIGTERM")
    assert "**Ended early (SIGTERM), after 100 of 540 s.**" in page(head, [MACHINE, KERNEL])
    assert not is_good(head, [MACHINE, KERNEL])


def test_a_verdict_counts_predictions_that_hold():
    rows = [dataclasses.replace(KERNEL, measured=value) for value in (2.0, 2.9, 8.0)]
    text = verdict("kernels", rows)
    assert text.startswith("2 of 3 predictions hold")
    # 1, 1.45 and 4 times what was predicted.
    assert "measured is 1.80 × predicted" in text


def test_the_faster_version_is_or_is_not_the_one_that_is_taken():
    def version(name, measured, taken, shape="scale-6"):
        details = {"contender": name, "shape": shape, "dtype": "bfloat16", "taken": taken}
        return dataclasses.replace(KERNEL, measured=measured, details=details)

    right = [version("triton-v1", 2.0, True), version("triton-v2", 3.0, False)]
    wrong = [version("triton-v1", 2.0, False, "x"), version("triton-v2", 3.0, True, "x")]
    alone = [version("triton-v1", 2.0, True, "y")]
    text = verdict("kernels", [*right, *wrong, *alone])
    assert text.endswith("of v1 and v2 the faster one is taken in 1 of 2 shapes")
    assert "of v1 and v2" not in verdict("kernels", alone)
    assert page(HEAD, [MACHINE, *right]).count("the version that is taken |") == 1


def test_a_measured_zero_is_no_mean():
    rows = [KERNEL, dataclasses.replace(KERNEL, measured=0.0)]
    assert verdict("kernels", rows).startswith("1 of 2 predictions hold")


def test_what_takes_no_time_counts_as_missed_and_in_no_mean():
    none = dataclasses.replace(KERNEL, measured=0.0)
    assert verdict("kernels", [KERNEL, none]) == (
        "1 of 2 predictions hold (within a factor of 1.5); "
        "measured is 1.25 × predicted in the geometric mean"
    )
    assert verdict("kernels", [none]) == "0 of 1 predictions hold (within a factor of 1.5)"
