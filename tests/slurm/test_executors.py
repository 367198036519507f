"""What a job inherits: nothing of an outer job, everything else, and the cluster that is meant."""

from __future__ import annotations

import contextlib
import os
import subprocess

import pytest

from isoflop.launch.slurm.executors import (
    python_command,
    scrubbed,
    scrubbed_environment,
    setup_lines,
)
from isoflop.launch.slurm.profile import ClusterProfile

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
}
KEPT = {"SLURM_CONF": "/etc/lab/slurm.conf", "PATH": "/bin", "WANDB_API_KEY": "x", "SLURMLAB": "y"}


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
    profile = ClusterProfile(name="a", hardware="cpu2", modules=("cuda/12",), venv="/my venv")
    assert setup_lines(profile, {}) == ["module load cuda/12"]
    assert python_command(profile) == "'/my venv/bin/python'"
    assert python_command(ClusterProfile(name="a", hardware="cpu2")) is None
