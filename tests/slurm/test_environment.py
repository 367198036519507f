"""What a job inherits: nothing of an outer job, everything else, and the cluster that is meant."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from isoflop.launch.job import Job
from isoflop.launch.slurm import executors
from isoflop.launch.slurm.environment import (
    SETUP_FAILED,
    VISIBLE_DEVICES,
    profile_in_shell,
    python_command,
    scrubbed,
    scrubbed_environment,
    setup_lines,
)
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.placement import Placement

OUTER = {
    "SLURM_JOB_ID": "7",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURM_ARRAY_JOB_ID": "7",
    "SLURMD_NODENAME": "n1",
    "SBATCH_TIMELIMIT": "1",
    "SUBMITIT_EXECUTOR": "slurm",
    "PMI_RANK": "3",
    "RANK": "1",
    "MASTER_ADDR": "elsewhere",
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "0",
    "ROCR_VISIBLE_DEVICES": "0",
    "GPU_DEVICE_ORDINAL": "0",
    "TRITON_INTERPRET": "1",
    "TORCHELASTIC_RUN_ID": "none",
    "GROUP_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "ROLE_RANK": "0",
    "ROLE_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "MPI_LOCALRANKID": "1",
    "MV2_COMM_WORLD_RANK": "1",
    "PMIX_RANK": "1",
    "SALLOC_PARTITION": "debug",
    "GOMP_CPU_AFFINITY": "3",
}
KEPT = {
    "SLURM_CONF": "/etc/lab/slurm.conf",
    "PATH": "/bin",
    "WANDB_API_KEY": "x",
    "SLURMLAB": "y",
    # Settings of a person or a module, which bind a job to nothing.
    "OMP_NUM_THREADS": "4",
    "MPI_HOME": "/opt/mpi",
    "I_MPI_ROOT": "/opt/intel",
    "TRITON_CACHE_DIR": "/scratch/triton",
    "HYDRA_FULL_ERROR": "1",
    "MASTER_KEY": "z",
}


def test_scrubbed() -> None:
    assert scrubbed(OUTER | KEPT) == KEPT


def test_the_environment_comes_back_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OUTER.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with contextlib.suppress(ZeroDivisionError), scrubbed_environment({"RANK": "5", "MORE": "1"}):
        assert not (OUTER.keys() - {"RANK"}) & os.environ.keys()
        assert (os.environ["RANK"], os.environ["MORE"]) == ("5", "1")
        raise ZeroDivisionError
    assert dict(os.environ) == before


def test_setup_is_shell_that_keeps_every_character() -> None:
    value = "a 'b' \"c\" $HOME `id`"
    profile = ClusterProfile(name="a", hardware="cpu2", setup=('printf "%s" "$MINE"',))
    lines = setup_lines(profile, {"MINE": value})
    assert subprocess.check_output(["bash", "-c", "\n".join(lines)], text=True) == value
    profile = ClusterProfile(name="a", hardware="cpu2", venv="/my venv")
    assert setup_lines(profile, {}) == ["unset PYTHONHOME"]
    assert python_command(profile) == "'/my venv/bin/python'"
    assert python_command(ClusterProfile(name="a", hardware="cpu2")) is None


def shell(*, modules: tuple[str, ...] = (), setup: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """The exit code, output and errors of a job's script, which has no module but `known`."""
    profile = ClusterProfile(name="a", hardware="cpu2", modules=modules, setup=setup)
    lines = ['module() { [ "$2" = known ]; }', *setup_lines(profile, {}), "false", "echo trained"]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("modules", "setup", "wanted"),
    [
        (("known", "it's gone"), (), "isoflop: module load it's gone failed"),
        ((), ("true", "no-such-command x"), "exit code 127): no-such-command x"),
        ((), ("source /no/such/file",), "source /no/such/file"),
        ((), ("for i in 1 2; do", "  ls /no/such/$i 2>/dev/null", "done"), "ls /no/such/$i"),
        ((), ("(exit 7)",), "exit code 7"),
    ],
)
def test_what_fails_before_a_task_ends_the_job_and_is_named(
    modules: tuple[str, ...], setup: tuple[str, ...], wanted: str
) -> None:
    code, out, error = shell(modules=modules, setup=setup)
    assert (code, out) == (SETUP_FAILED, "")
    assert wanted in error.splitlines()[-1]


@pytest.mark.parametrize(
    "setup",
    [
        ("if ! true; then", "  false", "fi"),
        ("cat > /dev/null <<END", "false", "END"),
        ("[ -f /no/such/file ] && source /no/such/file", "false || true", "! true", "true"),
        ("f() {", "  false", "  true", "}", "f"),
        ("source FILE",),
    ],
)
def test_what_a_shell_takes_for_a_condition_ends_no_job(
    setup: tuple[str, ...], tmp_path: Path
) -> None:
    # Fails on the way, as files of systems do, and not in the end.
    (tmp_path / "file").write_text("false\ntrue\n")
    lines = tuple(line.replace("FILE", str(tmp_path / "file")) for line in setup)
    assert shell(modules=("known",), setup=lines) == (0, "trained\n", "")


def test_what_the_profile_leaves_open_is_the_shell_s() -> None:
    environ = {
        "SBATCH_PARTITION": "debug",
        "SBATCH_ACCOUNT": "lab",
        "SBATCH_QOS": "",
        "SBATCH_CONSTRAINT": "ib",
        "SBATCH_TIMELIMIT": "1",
        "SLURM_ACCOUNT": "outer",
    }
    mine = ClusterProfile(name="a", hardware="cpu2", partition="main", sbatch={"nice": 5})
    found, lines = profile_in_shell(mine, environ)
    assert (found.partition, found.account, found.qos) == ("main", "lab", None)
    assert found.sbatch == {"constraint": "ib", "nice": 5}
    assert lines == (
        "from the shell: SBATCH_ACCOUNT=lab, SBATCH_CONSTRAINT=ib",
        "in the shell and not used, since the profile decides: SBATCH_PARTITION, SBATCH_TIMELIMIT",
    )
    # What was submitted so is sent so again, from whatever shell.
    assert profile_in_shell(found, {"SBATCH_ACCOUNT": "other"})[0] == found
    local = ClusterProfile(name="local", hardware="cpu2")
    assert profile_in_shell(local, environ) == (local, ())


@pytest.mark.parametrize(
    ("visible", "numbers"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, [2, 3]),
        ({"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "0,3"}, [0, 3]),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_local_tasks_share_the_gpus_that_are_visible_here(
    visible: dict[str, str], numbers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "num_gpus", lambda placement: 4)
    for name in VISIBLE_DEVICES:
        monkeypatch.setenv(name, visible.get(name, ""))
    on_gpu = Placement(device="cuda")
    job = Job(study_folder="a", run_id="b", data_folder="c", placement=on_gpu)
    assert executors.local_gpus([job]) == numbers
    assert executors.local_gpus([dataclasses.replace(job, placement=Placement())]) == []
