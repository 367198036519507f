"""Submission against pretended SLURM commands: what is sent, written down, and refused."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm import executors, records
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.records import (
    array_folder,
    comment_of,
    jobs_file,
    read_submissions,
    write_options,
)
from isoflop.launch.slurm.submit import arrays_of, dry_run_texts, prepare, send, submit
from isoflop.plan.planner import Plan
from slurm.made_sbatch import CPU, Pretended, typed, write_profile

GPU = ClusterProfile(
    name="gpu",
    hardware="h100",
    gpus_per_node=8,
    gpu_type="h100",
    account="lab",
    sbatch={"constraint": "ib", "exclusive": True},
)


def fail(folder: Path, run_id: str, times: int) -> None:
    """Failed attempts, as a task records them."""
    run_folder = RunFolder(folder, run_id)
    run_folder.path.mkdir(parents=True, exist_ok=True)
    for _ in range(times):
        attempt = run_folder.claim({})
        assert attempt is not None
        run_folder.end_attempt(attempt, "failed: CodeError: it does not work")


def sent_runs(folder: Path) -> list[str]:
    return [
        run_id
        for submission in read_submissions(folder)
        for array in submission.arrays
        if array.job_id is not None
        for task in array.tasks
        for run_id in task
    ]


def test_what_is_sent_is_on_the_disk_before_and_after(
    slurm: Pretended, study: tuple[Path, Plan]
) -> None:
    folder, plan = study
    report = submit(folder, CPU)
    before = json.loads((slurm.folder / "0.json").read_text())
    assert [array["job_id"] for array in before["arrays"]] == [None]
    (record,) = read_submissions(folder)
    (array,) = record.arrays
    assert (array.job_id, array.rejected, array.is_array) == ("100", None, True)
    assert sorted(sent_runs(folder)) == sorted(run.run_id for run in plan.unique_runs)
    assert (report.num_sent, report.job_ids, report.rejected) == (3, ["100"], {})
    for run in plan.unique_runs:
        job = json.loads(jobs_file(folder, record.submission_id).read_text())[run.run_id]
        assert (job["run_id"], job["study_folder"]) == (run.run_id, str(folder))
        assert Path(job["data_folder"]).is_dir()
        assert RunFolder(folder, run.run_id).read_spec() == run.spec
    assert record.snapshot is not None
    assert (Path(record.snapshot) / "isoflop" / "errors.py").exists()


def test_the_script_is_that_of_the_dry_run(slurm: Pretended, study: tuple[Path, Plan]) -> None:
    prepared = prepare(study[0], CPU)
    (text,) = dry_run_texts(prepared)
    assert not (study[0] / ".launch").exists()
    send(prepared)
    assert slurm.scripts == [text]
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    paths = {options.pop(name) for name in ("output", "error")}
    assert options.pop("comment") == comment_of(prepared.submission_id, 0)
    assert options == {
        "array": "0-2%3",
        "cpus-per-task": "1",
        "job-name": "isoflop-micro",
        "mem": "1024M",
        "nodes": "1",
        "ntasks-per-node": "1",
        "open-mode": "append",
        "partition": "main",
        "requeue": "",
        "signal": "USR2@120",
        "time": "20",
    }
    folder = array_folder(study[0], prepared.submission_id, 0)
    assert len(paths) == 2
    assert all(str(folder).replace("'", "'\"'\"'") in path for path in paths)
    assert "export PYTHONPATH=" in text
    assert text.index("export PYTHONPATH=") < text.index("srun ")


def test_gpus_ranks_and_left_out_nodes(slurm: Pretended, study: tuple[Path, Plan]) -> None:
    folder, plan = study
    first = plan.unique_runs[0].run_id
    placement = {"ranks": 4, "parallel": "fsdp", "micro_batch": 1}
    write_options(folder, {first: {"placement": placement, "exclude_nodes": ["n2", "n7"]}})
    submit(folder, GPU, only=[first], options={"micro_batch": 2})
    (script,) = slurm.scripts
    for line in (
        "--gres=gpu:h100:4",
        "--ntasks-per-node=4",
        "--nodes=1",
        "--exclude=n2,n7",
        "--account=lab",
        "--constraint=ib",
        "--exclusive",
        "--signal=USR2@120",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "--array" not in script
    assert "--kill-on-bad-exit=1" in script
    (record,) = read_submissions(folder)
    job = json.loads(jobs_file(folder, record.submission_id).read_text())[first]
    placement = job["placement"]
    assert (placement["device"], placement["num_ranks"]) == ("cuda", 4)
    # What was decided for this run wins over what was given for all.
    assert (placement["parallel"], placement["micro_batch"]) == ("fsdp", 1)
    assert record.options == {"micro_batch": 2}
    assert not record.arrays[0].is_array


def test_sbatch_sees_nothing_of_an_outer_job(
    slurm: Pretended, study: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CPU_BIND", "SBATCH_ACCOUNT", "SUBMITIT_EXECUTOR", "RANK"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/lab/slurm.conf")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    submit(study[0], CPU)
    lines = (slurm.folder / "0.env").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert {"SLURM_CONF", "WANDB_API_KEY", "PATH"} <= names
    assert not [n for n in names if n.startswith(("SLURM_", "SBATCH_", "SUBMITIT_", "RANK"))][1:]
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_arrays_are_cut_and_limits_kept(slurm: Pretended, study: tuple[Path, Plan]) -> None:
    folder, _ = study
    slurm.config(MaxArraySize=2)
    report = submit(folder, ClusterProfile(name="cpu", hardware="cpu2", max_submit=2))
    assert (report.num_sent, len(report.left)) == (2, 1)
    slurm.queue(*(f"100_{i}|PENDING|0|0||Resources|@0|" for i in range(2)))
    report = submit(folder, ClusterProfile(name="cpu", hardware="cpu2", max_submit=2))
    assert (report.num_sent, report.num_live, len(report.left)) == (0, 2, 1)
    slurm.queue()
    # Nobody trained them: they are sent again.
    report = submit(folder, CPU)
    assert report.num_sent == 3
    assert [len(array.tasks) for array in report.arrays] == [2, 1]
    assert [array.is_array for array in report.arrays] == [True, False]


def test_typed_twice_sends_nothing_twice(slurm: Pretended, study: tuple[Path, Plan]) -> None:
    folder, _ = study
    submit(folder, CPU)
    slurm.queue(*(f"100_{i}|RUNNING|0|0|n1|None|@0|" for i in range(3)))
    report = submit(folder, CPU)
    assert (report.submission_id, report.num_sent, report.num_live) == (None, 0, 3)
    assert len(slurm.scripts) == len(read_submissions(folder)) == 1
    # One is cancelled, one finished.
    slurm.queue("100_0|CANCELLED|0|0|n1|None|@0|", "100_2|PENDING|1|0||BeginTime|@0|")
    ids = [task[0] for task in read_submissions(folder)[0].arrays[0].tasks]
    run_folder = RunFolder(folder, ids[1])
    attempt = run_folder.claim({})
    assert attempt is not None
    result = {"status": "done", "status_reason": None, "loss": 1.0, "wall_s": 1.0}
    result["num_steps"] = run_folder.read_spec().steps
    assert run_folder.write_result(attempt, result)
    run_folder.end_attempt(attempt, "done")
    report = submit(folder, CPU)
    assert (report.num_sent, report.num_live, report.num_done) == (1, 1, 1)
    assert read_submissions(folder)[1].arrays[0].tasks == ((ids[0],),)


def test_cut_off_between_sbatch_and_its_answer(
    slurm: Pretended, study: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = study
    slurm.config(MaxArraySize=2)
    real = executors.send_to_slurm
    calls: list[object] = []

    def killed_at_the_second(*arguments: Any) -> str:
        calls.append(arguments)
        job_id = real(*arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return job_id

    monkeypatch.setattr(executors, "send_to_slurm", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        submit(folder, CPU)
    (record,) = read_submissions(folder)
    assert [array.job_id for array in record.arrays] == ["100", None]
    # The queue knows the second by its comment.
    comment = comment_of(record.submission_id, 1)
    slurm.queue(
        "100_0|RUNNING|0|0|n1|None|@0|",
        "100_1|RUNNING|0|0|n1|None|@0|",
        f"101|PENDING|0|0||None|{comment}|",
    )
    assert submit(folder, CPU).num_live == 3
    # And where it does not, the run was not sent.
    slurm.queue("100_0|RUNNING|0|0|n1|None|@0|", "100_1|RUNNING|0|0|n1|None|@0|")
    report = submit(folder, CPU)
    assert (report.num_sent, report.num_live) == (1, 2)


def test_rejected(slurm: Pretended, study: tuple[Path, Plan]) -> None:
    folder, _ = study
    words = "sbatch: error: invalid partition specified: nosuch"
    slurm.refuse(0, words)
    found = typed(folder, "--cluster", write_profile(folder), "--yes")
    assert found.exit_code == 2
    assert f"rejected, 3 runs: {words}\n" in found.stderr
    (record,) = read_submissions(folder)
    assert (record.arrays[0].job_id, record.arrays[0].rejected) == (None, words)
    left = array_folder(folder, record.submission_id, 0).iterdir()
    assert list(left) == []
    # Corrected, all of it goes.
    found = typed(folder, "--cluster", write_profile(folder), "--yes")
    assert found.exit_code == 0
    assert len(sent_runs(folder)) == 3


def test_half_rejected(slurm: Pretended, study: tuple[Path, Plan]) -> None:
    folder, _ = study
    slurm.config(MaxArraySize=2)
    slurm.refuse(1, "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job failed\n")
    found = typed(folder, "--cluster", write_profile(folder), "--yes")
    assert found.exit_code == 1
    assert "sent 2 runs" in found.stderr
    assert (
        "rejected, 1 run: sbatch: error: AssocMaxSubmitJobLimit; sbatch: error: Batch job failed"
    ) in found.stderr
    assert len(sent_runs(folder)) == 2


@pytest.mark.parametrize("missing", ["sbatch", "scontrol", "squeue"])
def test_no_slurm_here(missing: str, slurm: Pretended, study: tuple[Path, Plan]) -> None:
    folder, _ = study
    submit(folder, CPU)
    slurm.queue()
    os.environ["PATH"] = str(slurm.folder) + ":" + str(_tools(slurm.folder.parent))
    (slurm.folder / missing).unlink()
    found = typed(folder, "--cluster", write_profile(folder), "--yes")
    words = f"{found.stderr}{found.exception}"
    assert missing in words
    assert len(sent_runs(folder)) == 3
    if missing == "sbatch":
        assert found.exit_code == 2
    else:
        assert isinstance(found.exception, UserError)
        assert "is not on the PATH" in words


def _tools(parent: Path) -> Path:
    """What the pretended commands need, and nothing named as SLURM's."""
    folder = parent / "tools"
    folder.mkdir()
    for name in ("bash", "sh", "cat", "cp", "ls", "wc", "env", "dirname"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    return folder


def test_the_scheduler_does_not_answer(slurm: Pretended, study: tuple[Path, Plan]) -> None:
    folder, _ = study
    submit(folder, CPU)
    (slurm.folder / "squeue").write_text(
        "#!/bin/bash\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\n"
        "exit 1\n"
    )
    with pytest.raises(UserError, match="Unable to contact slurm controller"):
        submit(folder, CPU)
    assert len(slurm.scripts) == 1


def test_runs_that_failed_too_often_are_parked(slurm: Pretended, study: tuple[Path, Plan]) -> None:
    folder, plan = study
    first, second, _ = (run.run_id for run in plan.unique_runs)
    prepare(folder, CPU)
    fail(folder, first, CPU.max_failures)
    fail(folder, second, CPU.max_failures - 1)
    found = typed(folder, "--cluster", write_profile(folder), "--yes")
    assert f"parked: run {first[:12]} failed too often" in found.stdout
    assert len(sent_runs(folder)) == 2
    assert first not in sent_runs(folder)
    write_options(folder, {first: {"attempts_forgiven": CPU.max_failures}})
    assert submit(folder, CPU, only=[first]).num_sent == 1


@pytest.mark.parametrize("name", ["50%", "a\\b", "a\nb"])
def test_paths_that_sbatch_cannot_name(
    name: str, slurm: Pretended, study: tuple[Path, Plan], tmp_path: Path
) -> None:
    folder = study[0].rename(tmp_path / name)
    with pytest.raises(UserError, match="must be a path without"):
        submit(folder, CPU)
    assert slurm.scripts == []


def test_it_asks_before_it_sends(slurm: Pretended, study: tuple[Path, Plan]) -> None:
    folder, _ = study
    profile = write_profile(folder, price_per_hour=2.0, throttle=2)
    refused = typed(folder, "--cluster", profile)
    assert str(refused.exception) == (
        "--yes = None: must be given where nobody can be asked; "
        "add it, or look with --dry-run first"
    )
    shown = typed(folder, "--cluster", profile, "--dry-run")
    assert shown.exit_code == 0
    assert "#SBATCH --array=0-2%2" in shown.stdout
    assert re.search(
        r"3 runs to send to mine, 0 complete already; estimate on cpu2: ", shown.stdout
    )
    assert "at the price given" in shown.stdout
    assert shown.stdout.endswith("nothing was sent\n")
    assert slurm.scripts == []
    assert read_submissions(folder) == []
    assert typed(folder, "--cluster", profile, "--yes").exit_code == 0
    assert len(slurm.scripts) == 1


def test_variables_of_sbatch_in_the_shell_are_used_and_named(
    slurm: Pretended, study: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = study
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    done = typed(folder, "--cluster", write_profile(folder), "--yes")
    assert done.exit_code == 0, done.output
    assert "from the shell: SBATCH_ACCOUNT=lab" in done.output
    assert "not used, since the profile decides: SBATCH_TIMELIMIT" in done.output
    (script,) = slurm.scripts
    assert "#SBATCH --account=lab" in script
    assert "SBATCH_" not in (slurm.folder / "0.env").read_text()
    assert read_submissions(folder)[0].profile["account"] == "lab"


def test_runs_share_tasks(slurm: Pretended, study: tuple[Path, Plan]) -> None:
    folder, _ = study
    typed(folder, "--cluster", write_profile(folder), "--runs-per-task", "2", "--yes")
    (array,) = read_submissions(folder)[0].arrays
    assert [len(task) for task in array.tasks] == [2, 1]
    refused = typed(folder, "--cluster", write_profile(folder), "--runs-per-task", "0")
    assert "--runs-per-task = 0: must be 1 or more" in str(refused.exception)
    refused = typed(folder, "--cluster", write_profile(folder), "--device", "cuda")
    assert "--device = 'cuda': must be cpu, the profile's" in str(refused.exception)


def test_one_submission_at_a_time(
    slurm: Pretended, study: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = study
    monkeypatch.setattr(records, "LOCK_WAIT_S", 0.2)
    lock = folder / ".launch" / records.LOCK_FILE
    lock.parent.mkdir()
    with lock.open("w") as file:
        file.write("process 7 of login1\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"must be free \(process 7 of login1 is submitting\)"):
            submit(folder, CPU)
    assert slurm.scripts == []
    assert submit(folder, CPU).num_sent == 3


def test_local_tasks_need_no_scheduler(study: tuple[Path, Plan]) -> None:
    local = ClusterProfile(name="local", hardware="cpu2")
    prepared = prepare(study[0], local)
    arrays = arrays_of(prepared)
    assert {run_id for array in arrays for task in array.tasks for run_id in task} == ids(study[1])
    assert all(len(array.tasks) == 1 for array in arrays)
    assert dry_run_texts(prepared) == []


def ids(plan: Plan) -> Collection[str]:
    return {run.run_id for run in plan.unique_runs}


def test_where_nothing_is_to_be_sent_nobody_is_asked(
    slurm: Pretended, study: tuple[Path, Plan]
) -> None:
    folder, _ = study
    submit(folder, CPU)
    slurm.queue(
        *(f"100_{i}|RUNNING|0|0|n1|None|@0|" for i in range(2)), "100_2|CANCELLED|0|0||None|@0|"
    )
    some = typed(folder, "--cluster", write_profile(folder), "--dry-run")
    assert "1 run to send to mine, 0 complete already, 2 at work or queued; " in some.stdout
    slurm.queue(*(f"100_{i}|RUNNING|0|0|n1|None|@0|" for i in range(3)))
    for options in ([], ["--dry-run"]):
        none = typed(folder, "--cluster", write_profile(folder), *options)
        assert none.exit_code == 0
        assert "nothing to send: 0 runs complete, 3 at work or queued\n" in none.stdout
    assert len(slurm.scripts) == 1
