"""Whole studies through a real cluster, with nothing in their way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.made_cluster import Cluster
from slurm.made_slurm import SHORT, cluster_study

pytestmark = pytest.mark.slow


def test_a_micro_study_is_submitted_and_finished(slurm_cluster: Cluster, tmp_path: Path) -> None:
    # A quote and a space, as people's folders have them.
    study = cluster_study(
        slurm_cluster, tmp_path / 'it\'s "my" study', archs=("mlp", "swiglu"), sizes=(1,)
    )
    study.submit()
    study.wait_for_results()
    study.assert_each_ended_once_as_undisturbed()
    (array,) = study.arrays()
    assert len(array.tasks) == len(study.runs) == 2
    assert study.run_folder().attempts()[0].job_id == study.job()
    # Typed again, there is nothing to send.
    study.submit()
    assert len(study.arrays()) == 1


def test_arrays_are_cut_to_what_the_cluster_takes(
    new_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    study = cluster_study(
        new_cluster(MAXARRAY=2),
        tmp_path / "study",
        budgets=(SHORT, 2 * SHORT, 3 * SHORT),
    )
    study.submit()
    study.wait_for_results()
    study.assert_each_ended_once_as_undisturbed()
    assert sorted(len(array.tasks) for array in study.arrays()) == [1, 2]
