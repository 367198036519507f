"""Commands of one's own on a real cluster: all that can come between a run and its end, at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.launch.run_folder import RunFolder
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from made_trainer import own_study
from slurm.made_cluster import Cluster, wait_until
from slurm.made_slurm import ClusterStudy

pytestmark = pytest.mark.slow

CASES = ("requeued", "preempted", "node lost", "time limit", "in parts", "fails", "diverges")
LONG_STEPS, PART_STEPS = 80, 3
# Past the first time that the scheduler looks for those whose time is nearly up.
LIMIT_STEPS = 330

# A step is told, then kept; USR2 and TERM end it between two.
SCRIPT = f"""case=$1; cd $ISOFLOP_CHECKPOINT_DIR
[ "$case" = 6 ] && {{ echo "RuntimeError: on purpose"; exit 3; }}
[ "$case" = 7 ] && exit 77
[ "$case" = 4 ] && last={LIMIT_STEPS} || last={LONG_STEPS}
[ "$case" = 5 ] && last=$((2 * {PART_STEPS}))
stop=
trap 'stop=1' USR2 TERM
[ -e step ] && read step < step || step=0
while [ $step -lt $last ]; do
  step=$((step + 1)); echo $ISOFLOP_ATTEMPT $step >> told; echo $step > new; mv new step
  [ "$case" = 5 ] && [ $step = {PART_STEPS} ] && exit 75
  sleep 0.1
  [ -z "$stop" ] || exit 75
done
echo "{{\\"loss\\": $step, \\"tokens\\": $ISOFLOP_TOKENS}}" > $ISOFLOP_RESULT
"""


def sent_study(cluster: Cluster, folder: Path) -> ClusterStudy:
    """Runs of one size for each case, each on a node of its own."""
    sizes = range(1, len(CASES) + 1)
    study = own_study(
        folder / "code",
        command=["sh", "train.sh", "{depth}", "{steps}", "{seed}", "{checkpoint_dir}"],
        resume="native",
        count={
            "flops_per_token": [1000 * size for size in sizes],
            "n_params": [1000 * size for size in sizes],
        },
        ladder={"depth": list(sizes)},
    )
    (folder / "code" / "train.sh").write_text(SCRIPT)
    made = ClusterStudy(cluster, folder / "study")
    made.plan = make_plan(
        dataclasses.replace(study, budgets=(10**7,), archs=("plain",), trainer_archs=())
    )
    write_plan(made.plan, made.folder)
    return made


def told_by(folder: RunFolder) -> list[tuple[int, ...]]:
    """Attempt and step of all steps that were done."""
    path = folder.trainer / "told"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def test_every_run_has_one_end_whatever_happens_to_it(
    new_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = new_cluster(NODES=len(CASES) + 1, CPUS=1, GRACE=20, PREEMPT_SIGNAL=1, KILLWAIT=2)
    study = sent_study(cluster, tmp_path)
    of = {case: study.run_folder(number) for number, case in enumerate(CASES)}
    limits = {"time_limit_min": 1, "time_floor_min": 1, "max_failures": 2, "signal_s": 30}
    study.submit(**limits)
    # Nothing is sent twice.
    study.submit(**limits)
    assert len(study.arrays()) == 1

    job = {case: study.job(number) for number, case in enumerate(CASES)}
    for case in CASES[:3]:
        wait_until(lambda case=case: len(told_by(of[case])) > 5, f"steps of: {case}")
    node = {case: cluster.field(job[case], "NodeList") for case in CASES[:3]}
    cluster.run("scontrol", "requeue", job["requeued"])
    nodelist = f"--nodelist={node['preempted']}"
    high = cluster.sbatch("sleep 2", "--exclusive", "--partition=high", nodelist)
    cluster.kill_node(node["node lost"])
    down = f"nodename={node['node lost']}"
    cluster.run("scontrol", "update", down, "state=down", "reason=test")
    wait_until(
        lambda: (
            all(of[case].result() is not None for case in CASES if case != "fails")
            and len(of["fails"].attempts()) == 2
        ),
        "all ends",
        seconds=240,
    )
    cluster.wait_for(high, "COMPLETED")
    study.wait_for_empty_queue()

    reasons = {case: [a.exit_reason for a in folder.attempts()] for case, folder in of.items()}
    assert "interrupted: SIGTERM" in reasons["requeued"]
    assert "interrupted: SIGUSR2" in reasons["preempted"]
    assert "interrupted: SIGUSR2" in reasons["time limit"]
    assert reasons["in parts"] == ["interrupted: to be continued", "done"]
    assert all("RuntimeError: on purpose" in str(reason) for reason in reasons["fails"])
    assert reasons["diverges"] == ["diverged"]
    states = [state.state for state in map(study.state, range(len(CASES)))]
    assert states == ["done"] * 5 + ["failed", "diverged"]
    assert "parked after 2 failures" in str(study.state(CASES.index("fails")).reason)
    for case in CASES[:5]:
        told = told_by(of[case])
        # Each step once, by one attempt after the other.
        last = {"time limit": LIMIT_STEPS, "in parts": 2 * PART_STEPS}.get(case, LONG_STEPS)
        assert [step for _, step in told] == list(range(1, last + 1))
        assert [attempt for attempt, _ in told] == sorted(attempt for attempt, _ in told)
        result = of[case].result()
        assert result is not None
        assert (result.loss, reasons[case].count("done")) == (last, 1)
