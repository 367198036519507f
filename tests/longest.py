"""Which slow tests are long, and the order in which slow tests begin.

The longest come first: one that begins last leaves the other cores idle. Those that wait for a
cluster come among those that compute, for the same reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

SECONDS = {
    "test_install.py::test_a_stranger": 150,
    "slurm/test_matrix.py::test_a_time_limit_shorter_than_the_run": 136,
    "launch/test_run.py::test_killed_at_random_instants": 110,
    "slurm/test_matrix.py::test_status_while_the_controller_is_down": 128,
    "slurm/test_matrix.py::test_two_nodes_train_one_run": 102,
    "launch/test_shared_trunks.py::test_a_study_with_trunks": 80,
    "launch/test_shared_trunks.py::test_killed_at_random": 80,
    "docs/test_commands.py::test_the_code_of_a_document_runs[experiments": 90,
    "launch/test_chaos.py::test_killed_again_and_again_it_ends_bit_identical[sgatlin": 87,
    "slurm/test_matrix.py::test_killed_without_a_word[True": 86,
    "docs/test_commands.py::test_the_code_of_a_document_runs[isoflop/interpret": 83,
    "docs/test_commands.py::test_the_code_of_a_document_runs[isoflop/analysis": 77,
    "kernels/test_triton_interpreter.py::test_in_the_interpreter": 70,
    "slurm/test_matrix.py::test_a_node_dies": 68,
    "kernels/aot/test_triton_aot.py::test_the_largest_blocks": 60,
    "kernels/aot/test_triton_aot.py::test_every_kernel": 50,
    "launch/test_single.py::test_signals_stop_it": 70,
    "docs/test_commands.py::test_the_code_of_a_document_runs[slurm": 57,
    "test_hostile_folder.py": 60,
    "experiments/test_own_code.py::test_a_jax_script": 60,
    "slurm/test_own_trainer.py": 52,
    "slurm/test_matrix.py::test_the_controller_is_away": 46,
    "launch/test_run.py::test_a_failed_run": 47,
    "launch/test_run.py::test_a_family_from_a_folder": 48,
    "launch/test_namespaces.py": 45,
    "slurm/test_followed.py::test_a_run_is_followed": 45,
    "analysis/report/test_report.py::test_the_files_are_whole": 43,
    "launch/test_full_disk.py": 43,
    "launch/test_forks.py": 25,
    "docs/test_commands.py": 40,
    "gpu_report/test_bare.py": 30,
    "launch/test_single.py": 40,
    "experiments/test_own_code.py": 40,
    "slurm/test_then_fit.py": 40,
    "train/parallel/test_parallel.py": 38,
    "test_results.py": 38,
    "slurm/test_submit_real.py::test_a_run_that_fails": 34,
    "notebooks/test_notebooks.py": 33,
    "slurm/test_matrix.py::test_a_branch": 40,
    "slurm/test_matrix.py": 30,
    "launch/test_run.py": 27,
    "train/parallel/test_torchrun.py": 25,
    "train/parallel/test_trunk.py": 15,
    "analysis/parametric/test_bootstrap.py": 24,
    "plan/test_planner.py": 23,
    "model/test_count_llama.py::test_configurations": 22,
    "plan/test_count.py": 20,
    "launch/test_shared_trunks.py": 18,
    "launch/test_chaos.py::test_a_command_killed": 14,
    "slurm": 18,
}
"""Seconds of a slow test on two cores, by how its name below tests/ begins; the first that fits.

Roughly is enough. Others take a few; those of one file stay on one worker, for its fixtures.
"""
FEW = 3.0
_CLUSTERS = {"slurm_cluster", "new_cluster"}


class Scheduling(LoadScopeScheduling):
    """Gives workers long tests one by one and others by the file, in the order of their begins."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if _seconds(nodeid) > FEW else nodeid.partition("::")[0]


def sort(items: list[pytest.Item]) -> None:
    """Put tests in the order in which they are to begin."""
    ordered = sorted(items, key=lambda item: _seconds(item.nodeid), reverse=True)
    waiting = [item for item in ordered if _waits(item)]
    computing = [item for item in ordered if not _waits(item)]
    # Both are begun and ended together.
    begins = {**_begins(waiting), **_begins(computing)}
    items.sort(key=begins.__getitem__)


def _seconds(nodeid: str) -> float:
    name = nodeid.removeprefix("tests/")
    return next((s for prefix, s in SECONDS.items() if name.startswith(prefix)), FEW)


def _waits(item: pytest.Item) -> bool:
    return not _CLUSTERS.isdisjoint(getattr(item, "fixturenames", ()))


def _begins(items: Sequence[pytest.Item]) -> dict[pytest.Item, float]:
    """Return when each would begin, one after the other, as a share of the time of all."""
    seconds = [_seconds(item.nodeid) for item in items]
    sums = itertools.accumulate(seconds, initial=0.0)
    return {item: begin / sum(seconds) for item, begin in zip(items, sums, strict=False)}
