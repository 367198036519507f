"""`isoflop clean`: what goes, what stays, and that nothing is touched without need."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isoflop.cli.clean import clean
from isoflop.errors import UserError
from isoflop.launch.clean import STALE_S, leftovers, remove
from isoflop.launch.slurm.records import (
    array_folder,
    read_submissions,
    submit_lock,
    write_submission,
)
from isoflop.launch.slurm.snapshot import snapshot_of
from isoflop.launch.weights import prune_weights
from isoflop.plan.planner import Plan
from isoflop.study.trainer import ResultTable, Trainer
from slurm.made_scheduler import DOWN, Scheduler, Sent

USED, UNUSED, OPEN = "a" * 16, "b" * 16, "c" * 16
PARTIAL = f".{USED}-0123abcd"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(clean, [str(a) for a in arguments])


def listing(folder: Path) -> dict[str, int]:
    """Every file and folder below, and when it was changed."""
    return {str(p.relative_to(folder)): p.lstat().st_mtime_ns for p in sorted(folder.rglob("*"))}


def write(path: Path, *, age_s: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)
    changed = time.time() - age_s
    os.utime(path, (changed, changed))
    return path


def code(sent: Sent, digest: str) -> Path:
    return write(sent.folder / ".launch" / "code" / digest / "isoflop" / "errors.py").parents[1]


def submission(sent: Sent, job: str | None, digest: str, *, tasks: list[list[int]]) -> None:
    """One that runs a copy of the code, with what submitit keeps of it."""
    sent.submission(job, tasks=tasks, name=f"s{digest[0]}")
    (record,) = [s for s in read_submissions(sent.folder) if s.submission_id == f"s{digest[0]}"]
    # The folder was elsewhere when it was sent.
    record = dataclasses.replace(record, snapshot=f"/before/.launch/code/{digest}")
    write_submission(sent.folder, record)
    code(sent, digest)
    folder = array_folder(sent.folder, record.submission_id, 0)
    for name in (f"{job}_submitted.pkl", f"{job}_0_log.out", "submission_file_x.sh"):
        write(folder / name)


def study_with_leftovers(sent: Sent, told: Scheduler) -> tuple[list[Path], list[Path]]:
    """Returns what nothing needs, and what might be taken for it."""
    submission(sent, "12", USED, tasks=[[0], [1]])
    submission(sent, "13", UNUSED, tasks=[[2]])
    over = [sent.line("12_0", "COMPLETED"), sent.line("13", "COMPLETED")]
    told.queue(*over, sent.line("12_1", "PENDING"))
    sent.result(0)
    sent.attempt(1, None, job="12_1")
    launch = sent.folder / ".launch"
    old = 2 * STALE_S
    goes = [
        code(sent, UNUSED),
        code(sent, PARTIAL),
        array_folder(sent.folder, "sb", 0) / "13_submitted.pkl",
        write(sent.folder / ".plan.json.7-0123abcd.tmp", age_s=old),
        write(sent.run(1).path / ".lease.json.7-0123abcd.tmp", age_s=old),
        write(sent.run(0).checkpoints / "40" / "weights.safetensors").parents[1],
    ]
    stays = [
        launch / "code" / USED,
        array_folder(sent.folder, "sa", 0) / "12_submitted.pkl",
        array_folder(sent.folder, "sb", 0) / "13_0_log.out",
        write(sent.folder / ".fits.parquet.8-0123abcd.tmp"),
        write(sent.folder / "notes.tmp", age_s=old),
        write(sent.run(1).checkpoints / "40" / "weights.safetensors", age_s=old),
        sent.run(0).path / "result.json",
        launch / "sb" / "submission.json",
    ]
    return goes, stays


def test_what_nothing_needs_goes_and_everything_else_stays(told: Scheduler, sent: Sent) -> None:
    goes, stays = study_with_leftovers(sent, told)
    before = listing(sent.folder)
    looked = invoke(sent.folder, "--dry-run")
    assert looked.exit_code == 0, looked.output
    assert listing(sent.folder) == before
    shown = [text for text in looked.output.splitlines() if " kB  " in text]
    named = {text.split("kB  ")[1].partition(": ")[0] for text in shown}
    assert named == {str(path.relative_to(sent.folder)) for path in goes}
    assert f"{len(goes)} paths, 6 kB to remove" in looked.output
    refused = invoke(sent.folder)
    assert refused.exception is not None
    assert listing(sent.folder) == before
    done = invoke(sent.folder, "--yes")
    assert done.exit_code == 0, done.output
    assert f"removed {len(goes)} paths, 6 kB" in done.output
    assert [path for path in goes if path.exists()] == []
    assert all(path.exists() for path in stays)
    lock = ".launch/submit.lock"
    gone = [n for n in before if any((sent.folder / n).is_relative_to(path) for path in goes)]
    assert set(listing(sent.folder)) - {lock} == set(before) - set(gone)
    assert invoke(sent.folder, "--yes").output == "nothing to remove\n"


def test_nothing_goes_while_jobs_are_unknown(told: Scheduler, sent: Sent) -> None:
    study_with_leftovers(sent, told)
    before = listing(sent.folder)
    told.says("squeue", error=DOWN, code=1)
    for options in (["--dry-run"], ["--yes"]):
        done = invoke(sent.folder, *options)
        assert done.exit_code == 3
        assert "Unable to contact slurm controller" in done.stderr
        assert "nothing was removed" in done.stderr
    assert listing(sent.folder) == before


def test_code_stays_for_jobs_that_may_come_yet_and_processes_without_a_job(
    told: Scheduler, sent: Sent
) -> None:
    # sbatch was cut off just now; a node that the scheduler has lost still trains.
    submission(sent, None, OPEN, tasks=[[0]])
    record = read_submissions(sent.folder)[0]
    write_submission(sent.folder, dataclasses.replace(record, created_at=time.time()))
    submission(sent, "12", USED, tasks=[[1]])
    told.queue(sent.line("12", "NODE_FAIL"))
    sent.attempt(1, None, job="12", age_s=1.0)
    assert invoke(sent.folder, "--yes").output == "nothing to remove\n"


def test_code_stays_for_the_job_that_fits(told: Scheduler, sent: Sent) -> None:
    submission(sent, "12", USED, tasks=[[0]])
    (record,) = read_submissions(sent.folder)
    fit = dataclasses.replace(record.arrays[0], job_id="13", tasks=((),), is_fit=True)
    write_submission(sent.folder, dataclasses.replace(record, arrays=(*record.arrays, fit)))
    sent.result(0)
    told.queue(sent.line("12", "COMPLETED"), sent.line("13", "RUNNING"))
    assert invoke(sent.folder, "--yes").output == "nothing to remove\n"
    told.queue(sent.line("13", "COMPLETED"))
    # Where another user's jobs are hidden, none of them is known to be over.
    told.says("scontrol", "ClusterName = lab")
    (record,) = read_submissions(sent.folder)
    write_submission(sent.folder, dataclasses.replace(record, cluster_name="other"))
    told.queue()
    assert invoke(sent.folder, "--yes").output == "nothing to remove\n"
    write_submission(sent.folder, record)
    assert "code that no job runs" in invoke(sent.folder, "--dry-run").output


def test_links_are_neither_followed_nor_removed(
    told: Scheduler, sent: Sent, tmp_path: Path
) -> None:
    outside = tmp_path / "elsewhere"
    for name in (UNUSED, PARTIAL):
        write(outside / name / "file")
    write(outside / ".x.7-0123abcd.tmp", age_s=2 * STALE_S)
    before = listing(outside)
    sent.submission(tasks=[[0]])
    (sent.folder / ".launch" / "code").symlink_to(outside)
    (sent.folder / "plots").symlink_to(outside)
    (sent.folder / ".y.7-0123abcd.tmp").symlink_to(outside / UNUSED)
    sent.result(0)
    sent.run(0).checkpoints.symlink_to(outside)
    done = invoke(sent.folder, "--yes")
    assert "removed" not in done.output
    assert listing(outside) == before
    assert (sent.folder / ".launch" / "code").is_symlink()


def test_folders_that_are_nested_without_end_are_one_line(told: Scheduler, sent: Sent) -> None:
    sent.result(0)
    deepest = os.open(sent.run(0).path, os.O_RDONLY)
    for name in ("ckpt", *["d"] * 1500):
        os.mkdir(name, dir_fd=deepest)
        inner = os.open(name, os.O_RDONLY, dir_fd=deepest)
        os.close(deepest)
        deepest = inner
    os.close(deepest)
    try:
        for option in ("--dry-run", "--yes"):
            error = invoke(sent.folder, option).exception
            assert isinstance(error, UserError)
            assert "not nested deeper than 100 levels; remove the deepest" in str(error)
        prune_weights(sent.folder, sent.plan)
    finally:
        # pytest could not.
        subprocess.run(["/bin/rm", "-r", str(sent.run(0).path)], check=True)


def test_the_folder_itself_may_be_a_link(told: Scheduler, sent: Sent, tmp_path: Path) -> None:
    goes, stays = study_with_leftovers(sent, told)
    link = tmp_path / "link"
    link.symlink_to(sent.folder)
    assert invoke(link, "--yes").exit_code == 0
    assert not any(path.exists() for path in goes)
    assert all(path.exists() for path in stays)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_submission_removes_what_a_killed_one_left_of_its_copy(
    is_whole: bool, sent: Sent
) -> None:
    snapshot = snapshot_of(sent.folder, ["mlp"])
    if is_whole:
        snapshot.write()
    partial = snapshot.folder.with_name(f".{snapshot.folder.name}-0123abcd")
    write(partial / "isoflop" / "errors.py").chmod(0o444)
    hidden = write(snapshot.folder.parent / ".nfs0000")
    with submit_lock(sent.folder):
        snapshot.write()
    assert not partial.exists()
    assert hidden.exists()
    assert (snapshot.folder / "isoflop" / "errors.py").exists()


def test_a_trainers_code_stays_while_a_run_may_start_from_it(told: Scheduler, sent: Sent) -> None:
    trainer = Trainer(
        command=("train", "{steps}", "{seed}", "{d}"),
        batch_tokens=8,
        seq_len=8,
        data="a label",
        count="model:build",
        comparable_losses=True,
        result=ResultTable(unit="nats_per_token"),
        ladder={"d": (1, 2)},
    )
    study = dataclasses.replace(sent.plan.study, trainer=trainer)
    plan = dataclasses.replace(sent.plan, study=study)
    copies = sent.folder / ".launch" / "code"
    data = write(sent.folder.parent / "data" / "train.bin")
    whole = write(copies / "trainer-00000000aaaaaaaa" / "train.py").parent
    (whole / "data").symlink_to(data.parent)
    half = write(copies / ".trainer-00000000aaaaaaaa.7-0123abcd.tmp" / "train.py").parent
    isoflop_code = code(sent, UNUSED)

    def found(of: Plan) -> set[Path]:
        return {leftover.path for leftover in leftovers(sent.folder, of)}

    told.queue()
    # The sources may have been edited since: the copy is all that runs without a result have.
    assert found(plan) == {isoflop_code}
    last = len(sent.plan.unique_runs) - 1
    for number in range(last + 1):
        sent.result(number)
    submission(sent, "12", USED, tasks=[[last]])
    told.queue(sent.line("12", "RUNNING"))
    assert whole not in found(plan)
    told.queue(sent.line("12", "COMPLETED"))
    # Of a plan without a trainer nothing starts there.
    assert whole in found(plan)
    assert whole in found(sent.plan)
    assert half not in found(plan)
    os.utime(half, (0, 0))
    assert half in found(plan)
    gone = remove(sent.folder, plan, leftovers(sent.folder, plan))
    assert {whole, half} < {leftover.path for leftover in gone}
    assert (whole.exists(), half.exists(), data.exists()) == (False, False, True)
