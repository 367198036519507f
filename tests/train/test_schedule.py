"""Learning rates against the reference's tables."""

from __future__ import annotations

import csv

import pytest

from golden_values import GOLDEN
from isoflop.errors import UserError
from isoflop.train.optimizer import learning_rate

KINDS = {
    "warmup_stable_sqrt_decay": "sqrt",
    "warmup_stable_linear_decay": "linear",
    "cosine": "cosine",
}
FAULTY = ("too_short", "shorter_than_warmup")


def golden_rows() -> list[dict[str, str]]:
    with (GOLDEN / "schedules.csv").open() as file:
        return list(csv.DictReader(file))


def ours(row: dict[str, str]) -> float:
    return learning_rate(
        int(row["step"]),
        int(row["n_optim"]),
        float(row["lr"]),
        int(row["warmup"]),
        float(row["decay_fraction"]),
        KINDS[row["kind"]],
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["small", "golden300", "paper_like"])
def test_equals_the_reference_at_every_step(case: str, kind: str) -> None:
    rows = [row for row in golden_rows() if row["case"] == case and row["kind"] == kind]
    assert len(rows) > 50
    for row in rows:
        assert abs(ours(row) - float(row["value"])) <= 1e-6 * float(row["lr"]), row


def test_all_golden_rows_are_used_or_refused() -> None:
    cases = {row["case"] for row in golden_rows()}
    assert cases == {"small", "golden300", "paper_like", *FAULTY}


@pytest.mark.parametrize("kind", ["warmup_stable_sqrt_decay", "warmup_stable_linear_decay"])
@pytest.mark.parametrize("case", FAULTY)
def test_a_negative_constant_phase_is_refused(case: str, kind: str) -> None:
    rows = [row for row in golden_rows() if row["case"] == case and row["kind"] == kind]
    assert all(int(row["const_steps"]) < 0 for row in rows)
    with pytest.raises(UserError, match=r"^steps = \d+: must be at least \d+"):
        ours(rows[0])


def test_phases_may_touch_but_not_overlap() -> None:
    assert learning_rate(10, 12, 1.0, 10, 0.2, "sqrt") == 1.0
    with pytest.raises(UserError, match="steps = 12"):
        learning_rate(0, 12, 1.0, 11, 0.2, "sqrt")


def test_cosine_needs_room_between_two_warmups() -> None:
    assert learning_rate(11, 21, 1.0, 10, 0.2, "cosine") == pytest.approx(0.1)
    with pytest.raises(UserError, match="steps = 20"):
        learning_rate(0, 20, 1.0, 10, 0.2, "cosine")


def test_constant_has_no_warmup() -> None:
    assert [learning_rate(step, 3, 0.5, 1000, 0.2, "constant") for step in range(3)] == [0.5] * 3


def test_first_step_is_zero_and_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, 100, 0.5, 10, 0.2, "sqrt") == 0.0
    assert learning_rate(0, 100, 0.5, 0, 0.2, "sqrt") == 0.5


def test_no_decay_stays_at_the_peak() -> None:
    assert learning_rate(99, 100, 0.5, 10, 0.0, "sqrt") == 0.5
    assert learning_rate(100, 100, 0.5, 10, 0.0, "linear") == 0.5


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="schedule = 'step'"):
        learning_rate(0, 100, 1.0, 10, 0.2, "step")
