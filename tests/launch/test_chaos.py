"""A run that is killed at random instants and in the middle of writing a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.launch.job import Job
from isoflop.placement import Placement
from made_kills import disturb, job_in


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "budget_flops", "num_kills"),
    [("mlp", 2 * 10**8, 2), ("sgatlin", 5 * 10**8, 20)],
)
def test_killed_again_and_again_it_ends_bit_identical(
    family: str, budget_flops: int, num_kills: int, tmp_path: Path
) -> None:
    def job(name: str, placement: Placement) -> Job:
        return job_in(tmp_path / name, family, placement, budget_flops=budget_flops)

    wanted = disturb(job("undisturbed", Placement()), 0, seed=0)
    every_step = Placement(checkpoint_every_s=0.0)
    found = disturb(job("killed", every_step), num_kills, seed=num_kills)
    assert found.num_kills == num_kills
    assert found.num_attempts == num_kills + 1
    # Half of the kills aim at one.
    assert num_kills < 20 or found.num_in_a_write > 0
    assert found.num_damaged == 0
    # Each attempt goes on from the one before.
    assert found.steps_at_kills == sorted(found.steps_at_kills)
    assert found.steps_at_kills[-1] > 0
    for name in ("loss", "loss_se", "bits_per_byte", "reference_perplexity", "num_steps"):
        assert getattr(found.result, name) == getattr(wanted.result, name)
    assert found.weights == wanted.weights
