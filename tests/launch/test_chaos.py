"""A run that is killed at random instants and in the middle of writing a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.launch.job import Job
from isoflop.placement import Placement
from made_commands import made_job, made_spec
from made_kills import disturb, disturb_command, job_in


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


# Each step is in one file with the sum of all so far; a step is told before it counts. Together
# they take longer than ten lives.
COMMAND = """cd $ISOFLOP_CHECKPOINT_DIR
[ -e state ] && read step sum < state || { step=0; sum=0; }
while [ $step -lt 60 ]; do
  step=$((step + 1)); sum=$((sum + step))
  echo $ISOFLOP_ATTEMPT $step >> ../../../../steps
  sh -c 'sleep 0.1'
  echo $step $sum > new; mv new state
done
echo "{\\"loss\\": $sum, \\"tokens\\": 64}" > $ISOFLOP_RESULT
"""


@pytest.mark.slow
@pytest.mark.parametrize("resume", ["native", "restart"])
def test_a_command_killed_with_all_that_keeps_it_has_one_result(
    resume: str, tmp_path: Path
) -> None:
    # Another run than that of the other tests: processes are known by its id.
    job, folder = made_job(tmp_path, COMMAND, resume=resume, spec=made_spec(seed=len(resume)))
    killed = disturb_command(job, 10, seed=len(resume))
    assert len(set(killed)) > 3
    result = folder.result()
    assert result is not None
    assert (result.status, result.loss, result.attempt) == ("done", 60 * 61 / 2, 11)
    lines = (tmp_path / "steps").read_text().splitlines()
    told = [tuple(map(int, line.split())) for line in lines]
    # No two were at work at once, and each began where it should have.
    assert [attempt for attempt, _ in told] == sorted(attempt for attempt, _ in told)
    first = {attempt: step for attempt, step in reversed(told)}
    last = dict(told)
    for attempt in first.keys() - {min(first)}:
        done = last[max(earlier for earlier in first if earlier < attempt)]
        assert first[attempt] in ({1} if resume == "restart" else {done, done + 1})
    assert last[11] == 60
    assert [a.exit_reason for a in folder.attempts()][-1] == "done"
