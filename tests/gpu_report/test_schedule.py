"""The budget on a clock of the test's own: what is late is cut, and nothing outlasts the whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from isoflop.gpu_report.jobs import SHARES, first_stage, shares, stages
from isoflop.gpu_report.records import Job, Row
from isoflop.gpu_report.schedule import GRACE_S, Budget, Stage, run_stage


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Simulated:
    """Takes as long as a job is said to; ends it at the limit, in the time that killing takes."""

    def __init__(self, clock: Clock, kill_s: float = 0.0) -> None:
        self.clock = clock
        self.kill_s = kill_s
        self.given: list[tuple[str, float]] = []

    def run(self, job: Job, limit_s: float) -> Iterator[Row]:
        self.given.append((job.case, limit_s))
        takes = job.values["takes"]
        if takes > limit_s:
            self.clock.now += limit_s + self.kill_s
            yield Row(stage=job.stage, case=job.case, outcome="cut")
            return
        self.clock.now += takes
        yield Row(stage=job.stage, case=job.case, outcome="passed")


def stage(name: str, *takes: float, limit_s: float = 1e9) -> Stage:
    jobs = [
        Job(
            stage=name, case=f"{name} {number}", kind="", limit_s=limit_s, values={"takes": seconds}
        )
        for number, seconds in enumerate(takes)
    ]
    return Stage(name=name, jobs=jobs)


def simulate(shares_s, made, total_s=None, kill_s=0.0):
    clock = Clock()
    budget = Budget(total_s or sum(shares_s.values()), shares_s, clock)
    runner, rows = Simulated(clock, kill_s), []
    for each in made:
        run_stage(each, budget, [runner], rows.append)
    return {row.case: row.outcome for row in rows}, budget.elapsed_s, runner.given


def test_what_an_early_stage_leaves_goes_to_the_next():
    outcomes, elapsed, given = simulate({"a": 10, "b": 10}, [stage("a", 2), stage("b", 15)])
    assert outcomes == {"a 0": "passed", "b 0": "passed"}
    assert elapsed == 17
    assert given[1] == ("b 0", 18)


def test_a_stage_that_hangs_takes_its_own_share_and_no_more():
    made = [stage("a", 1, 1e6, 1), stage("b", 9)]
    outcomes, elapsed, _ = simulate({"a": 10, "b": 10}, made)
    assert outcomes == {"a 0": "passed", "a 1": "cut", "a 2": "cut", "b 0": "passed"}
    assert elapsed == 19


def test_a_job_that_hangs_ends_at_its_own_limit_and_the_next_one_runs():
    outcomes, elapsed, _ = simulate({"a": 100}, [stage("a", 1e6, 5, limit_s=20)])
    assert outcomes == {"a 0": "cut", "a 1": "passed"}
    assert elapsed == 25


def test_what_killing_takes_is_taken_from_the_stages_after():
    made = [stage("a", 1e6), stage("b", 8)]
    outcomes, _, given = simulate({"a": 10, "b": 10}, made, kill_s=3)
    assert given[1] == ("b 0", 7)
    assert outcomes["b 0"] == "cut"


@pytest.mark.parametrize("takes", [0.1, 7, 1e6])
def test_the_whole_never_outlasts_the_budget_by_more_than_one_kill(takes):
    made = [stage(name, *[takes] * 30, limit_s=25) for name in SHARES]
    outcomes, elapsed, _ = simulate(SHARES, made, total_s=60, kill_s=GRACE_S)
    assert elapsed <= 60 + GRACE_S
    assert len(outcomes) == 30 * len(SHARES), "each job has a row, also those that did not run"


def test_shares_are_of_the_budget_whatever_it_is():
    clock = Clock()
    budget = Budget(54, SHARES, clock)
    total = sum(SHARES.values())
    first_two = SHARES["machine"] + SHARES["compile"]
    assert budget.left_s("compile") == pytest.approx(54 * first_two / total)
    assert budget.left_s("machine") == pytest.approx(27), "half: nothing can be without it"
    assert budget.left_s("losses") == pytest.approx(54)
    clock.now += 100
    assert budget.left_s("losses") == 0


def test_one_stage_alone_has_all_but_what_the_machine_takes():
    assert list(shares("kernels")) == ["machine", "kernels"]
    assert sum(shares("kernels").values()) == sum(SHARES.values())
    assert list(shares("machine")) == ["machine"]
    assert shares(None) == SHARES


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_jobs_are_of_their_stages_and_named_apart(device):
    made = [first_stage(), *stages(device, {"copy": 1e12})]
    assert [each.name for each in made] == list(SHARES)
    for each in made:
        names = [job.case for job in each.jobs]
        assert names
        assert len(set(names)) == len(names)
        assert all(job.stage == each.name for job in each.jobs)


def test_several_runners_share_the_jobs_of_a_stage():
    clock = Clock()
    budget = Budget(100, {"a": 1}, clock)
    runners = [Simulated(clock), Simulated(clock)]
    rows: list[Row] = []
    run_stage(stage("a", *[0.0] * 50), budget, runners, rows.append)
    assert sorted(row.case for row in rows) == sorted(f"a {number}" for number in range(50))
