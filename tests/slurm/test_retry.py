"""`isoflop retry`: which runs, with what, and what is written down for later submissions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from isoflop.cli.retry import _KINDS, retry
from isoflop.errors import UserError
from isoflop.launch.slurm import submit as submission
from isoflop.launch.slurm.failures import KINDS
from isoflop.launch.slurm.outcome import SubmitReport
from isoflop.launch.slurm.records import read_options, write_options
from isoflop.launch.slurm.retry import next_layout, plan_retry
from isoflop.placement import Placement, placement_from
from isoflop.plan.estimate.memory import model_shape
from made_listing import listing
from slurm.made_scheduler import DOWN, Scheduler, Sent, line

OOM = "failed: out of memory: mlp, width 64, 2 layers"


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was handed to submission, which does nothing here."""
    calls: list[dict[str, Any]] = []

    def submit(folder: Path, profile: Any, **options: Any) -> SubmitReport:
        typed = options.pop("options")
        calls.append(
            {"profile": profile.name, **options, "typed": typed, "options": read_options(folder)}
        )
        return SubmitReport(submission_id=None, arrays=(), num_done=0, num_live=0, parked=())

    monkeypatch.setattr(submission, "submit", submit)
    return calls


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(retry, [str(a) for a in arguments])


def four_failures(sent: Sent, told: Scheduler) -> None:
    sent.submission()
    placement = dataclasses.asdict(Placement())
    sent.attempt(0, OOM, job="12_0", placement=placement)
    sent.attempt(
        1,
        "failed: RuntimeError: CUDA error: uncorrectable ECC error encountered",
        job="12_1",
        node="n7",
    )
    sent.attempt(2, "failed: ValueError: x", job="12_2")
    told.queue(
        *(line(f"12_{i}", "FAILED", status=256, node="n2") for i in range(3)),
        line("12_3", "NODE_FAIL", node="n8"),
    )


def test_only_the_runs_that_were_named_are_tried_again(
    told: Scheduler, sent: Sent, submitted: list[dict[str, Any]]
) -> None:
    four_failures(sent, told)
    (moe, *_), other = [s for s in sent.plan.unique_runs if s.run_id == sent.ids[0]], sent.ids[2]
    named = [sent.ids[0][:12], other[:12]]
    done = invoke(sent.folder, *named, "--archs", moe.arch, "--failed", "all", "--yes")
    assert done.exit_code == 0, done.output
    archs = {run.run_id: run.arch for run in sent.plan.unique_runs}
    wanted = [rid for rid in (sent.ids[0], other) if archs[rid] == moe.arch]
    assert sorted(submitted[0]["only"]) == sorted(wanted)
    assert set(submitted[0]["options"]) == set(wanted)
    said = invoke(sent.folder, sent.ids[0][:12], "--failed", "code", "--yes").output
    assert said == "nothing to retry: no run failed by code, but 1 of oom\n"


def test_the_command_takes_every_kind_there_is() -> None:
    assert (*KINDS, "all") == _KINDS


@pytest.mark.parametrize(
    ("kind", "indices"), [("oom", [0]), ("node", [1, 3]), ("code", [2]), ("all", [0, 1, 2, 3])]
)
def test_only_the_runs_of_a_kind_are_sent_again(
    kind: str,
    indices: list[int],
    told: Scheduler,
    sent: Sent,
    submitted: list[dict[str, Any]],
) -> None:
    four_failures(sent, told)
    done = invoke(sent.folder, "--failed", kind, "--yes")
    assert done.exit_code == 0, done.output
    (call,) = submitted
    assert call["profile"] == "tests"
    assert sorted(call["only"]) == sorted(sent.ids[i] for i in indices)


def test_out_of_memory_gets_the_memory_plan_s_next_option(
    told: Scheduler, sent: Sent, submitted: list[dict[str, Any]]
) -> None:
    four_failures(sent, told)
    done = invoke(sent.folder, "--failed", "oom", "--yes")
    assert "micro_batch = " in done.output
    assert "estimated peak" in done.output
    (options,) = submitted[0]["options"].values()
    placement = placement_from(options["placement"])
    assert placement.micro_batch is not None
    assert placement.micro_batch < 4
    assert options["attempts_forgiven"] == 1
    # A second time it goes on from there.
    sent.attempt(0, OOM, job="13_0", number=2, placement=dataclasses.asdict(placement), age_s=1)
    invoke(sent.folder, "--failed", "oom", "--yes")
    again = placement_from(next(iter(submitted[1]["options"].values()))["placement"])
    assert (again.micro_batch, again.checkpoint_activations) != (
        placement.micro_batch,
        placement.checkpoint_activations,
    )


def test_bad_nodes_are_left_out_from_now_on(
    told: Scheduler, sent: Sent, submitted: list[dict[str, Any]]
) -> None:
    four_failures(sent, told)
    forgiven = {"attempts_forgiven": 1}
    write_options(sent.folder, {sent.ids[1]: {"exclude_nodes": ["n1"]}, sent.ids[2]: forgiven})
    done = invoke(sent.folder, "--failed", "node", "--yes")
    assert "without nodes n7, n8" in done.output
    options = submitted[0]["options"]
    assert options[sent.ids[1]]["exclude_nodes"] == ["n1", "n7", "n8"]
    assert options[sent.ids[3]]["exclude_nodes"] == ["n7", "n8"]
    assert options[sent.ids[2]] == forgiven
    assert "placement" not in options[sent.ids[1]]


def test_parked_runs_get_a_new_count(
    told: Scheduler, sent: Sent, submitted: list[dict[str, Any]]
) -> None:
    sent.submission()
    for number in (1, 2, 3):
        sent.attempt(0, "failed: ValueError: x", job="12_0", number=number)
    told.queue(line("12_0", "FAILED", status=256), line("12_1", "PENDING"))
    assert "parked after 3 failures" in str(sent.state().reason)
    invoke(sent.folder, "--failed", "code", "--yes")
    assert submitted[0]["only"] == [sent.ids[0]]
    assert "parked" not in str(sent.state().reason)


def test_nothing_is_sent_unasked_or_in_the_dark(
    told: Scheduler, sent: Sent, submitted: list[dict[str, Any]]
) -> None:
    four_failures(sent, told)
    unasked = invoke(sent.folder, "--failed", "all")
    assert isinstance(unasked.exception, UserError)
    assert "--yes" in str(unasked.exception)
    told.says("squeue", error=DOWN, code=1)
    dark = invoke(sent.folder, "--failed", "all", "--yes")
    assert "Unable to contact slurm controller" in str(dark.exception)
    assert submitted == []
    assert read_options(sent.folder) == {}


SETUP = {
    "modules": ["cuda/12"],
    "setup": ["source /opt/env", "printf '\x1b[2K'; rm -rf ~"],
    "sbatch": {"constraint": "a100", "exclusive": True},
    "partition": "long",
}
SHOWN = """\
profile tests, partition long
  module load cuda/12
  setup: source /opt/env
"  setup: printf '\\x1b[2K'; rm -rf ~"
  sbatch --constraint=a100
  sbatch --exclusive
"""


@pytest.mark.parametrize("option", ["--yes", None])
def test_the_profile_that_is_used_is_shown_before_anything_is_sent(
    option: str | None, told: Scheduler, sent: Sent, submitted: list[dict[str, Any]]
) -> None:
    four_failures(sent, told)
    sent.submission(**SETUP)
    done = invoke(sent.folder, "--failed", "code", *([option] if option else []))
    assert SHOWN in done.output
    assert len(submitted) == (option is not None)


def test_a_dry_run_shows_the_scripts_with_what_would_be_decided_and_writes_nothing(
    told: Scheduler, sent: Sent, submitted: list[dict[str, Any]]
) -> None:
    four_failures(sent, told)
    sent.submission(**SETUP)
    told.says("scontrol", "MaxArraySize            = 1001")
    before = listing(sent.folder)
    done = invoke(sent.folder, "--failed", "all", "--dry-run")
    assert done.exit_code == 0, done.output
    assert SHOWN in done.output
    assert "module load cuda/12" in done.output.split("# array 0")[1]
    assert "#SBATCH --exclude=n7,n8" in done.output
    assert "micro_batch = " in done.output
    assert done.output.endswith("nothing was sent\n")
    assert submitted == []
    assert listing(sent.folder) == before


def test_running_done_and_diverged_runs_are_not_retried(
    told: Scheduler, sent: Sent, submitted: list[dict[str, Any]]
) -> None:
    sent.submission()
    sent.result(0)
    sent.result(1, "diverged")
    told.queue(line("12_2", "RUNNING"), line("12_3", "PENDING"))
    done = invoke(sent.folder, "--failed", "all", "--yes")
    assert "nothing to retry: no run has failed or is lost" in done.output
    sent.attempt(2, "failed: ValueError: x", job="12_2")
    told.queue(line("12_2", "FAILED", status=256), line("12_3", "PENDING"))
    done = invoke(sent.folder, "--failed", "oom", "--yes")
    assert "nothing to retry: no run failed by oom, but 1 of code" in done.output
    assert submitted == []


def test_runs_that_were_never_submitted_need_a_cluster(
    told: Scheduler, sent: Sent, submitted: list[dict[str, Any]]
) -> None:
    sent.attempt(0, OOM)
    refused = invoke(sent.folder, "--failed", "oom", "--yes")
    assert "name a profile, or `local`" in str(refused.exception)
    assert invoke(sent.folder, "--failed", "oom", "--yes", "--cluster", "local").exit_code == 0
    assert submitted[0]["profile"] == "local"


def test_what_was_typed_at_the_last_submission_holds(
    told: Scheduler, sent: Sent, submitted: list[dict[str, Any]]
) -> None:
    sent.submission("11", options={"compile": True}, age_s=2000.0)
    sent.submission("12", name="s2", options={"micro_batch": 2})
    sent.attempt(0, "failed: ValueError: x", job="12_0")
    told.queue(line("12_0", "FAILED", status=256), line("12_1", "PENDING"))
    done = invoke(sent.folder, "--failed", "code", "--yes")
    assert "with micro_batch = 2, as last submitted" in done.output
    assert submitted[0]["typed"] == {"micro_batch": 2}


def test_layouts_follow_one_another_until_nothing_needs_less(sent: Sent) -> None:
    spec = sent.plan.unique_runs[0].spec
    changes = {"batch_size": 8, "seq_len": 2048, "n_layers": 6, "num_params": 10**7}
    shape = dataclasses.replace(model_shape(spec), **changes)
    now, seen, peaks = Placement(), [], []
    while (found := next_layout(shape, now, max_devices=4)) is not None:
        entries, peak = found
        now = placement_from(entries)
        seen.append((now.num_ranks, now.checkpoint_activations, now.micro_batch))
        peaks.append(peak)
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(seen)) == len(seen)
    # One device at first, smaller micro-batches before checkpointing, then more devices.
    assert seen[0][0] == 1
    assert not seen[0][1]
    assert seen == sorted(seen, key=lambda layout: (layout[0], layout[1]))
    assert seen[-1][0] == 4
    assert now.parallel == "fsdp"


def test_one_device_stays_one_device(sent: Sent) -> None:
    shape = model_shape(sent.plan.unique_runs[0].spec)
    layout = Placement(micro_batch=1, checkpoint_activations=True)
    assert next_layout(shape, layout, max_devices=1) is None


def test_without_a_smaller_layout_it_says_so(told: Scheduler, sent: Sent) -> None:
    sent.submission()
    last = dataclasses.asdict(Placement(micro_batch=1, checkpoint_activations=True))
    sent.attempt(0, OOM, job="12_0", placement=last)
    told.queue(line("12_0", "FAILED", status=256))
    planned = plan_retry(sent.folder, sent.status(), "oom", 1)
    assert "nothing that needs clearly less" in planned.lines[0]
    assert "placement" not in planned.options[sent.ids[0]]
