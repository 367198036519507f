"""Records of submissions and decisions that are damaged, or were edited by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.files import write_json_atomic
from isoflop.launch.job import Job
from isoflop.launch.slurm.records import (
    cancelled_jobs,
    jobs_file,
    read_jobs,
    read_options,
    read_submissions,
)
from made_studies import set_value
from slurm.made_scheduler import Sent

RUN, OTHER = "a" * 64, "b" * 64


def options(folder: Path, values: Any) -> str:
    """The one line that a file of options is refused with."""
    write_json_atomic(folder / ".launch" / "options.json", values)
    with pytest.raises(UserError) as refused:
        read_options(folder, {RUN})
    return str(refused.value)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"exclude_node": ["n1"]}, "exclude_node = ['n1']: must be a known key (placement, "),
        ({"exclude_node": ["n1"]}, "; write exclude_nodes"),
        ({"microbatch": 2}, "microbatch = 2: must be a known key"),
        ({"placement": {"microbatch": 2}}, "placement.microbatch = 2: must be a known key"),
        ({"placement": {"microbatch": 2}}, "; write micro_batch"),
        ({"placement": {"micro_batch": "2"}}, "placement.micro_batch = '2': must be a whole num"),
        ({"placement": {"micro_batch": 0}}, "placement.micro_batch = 0: must be 1 or more"),
        ({"placement": []}, "placement = []: must be a table"),
        ({"exclude_nodes": "n1"}, "exclude_nodes = 'n1': must be a list"),
        ({"exclude_nodes": ["--wrap=x"]}, "exclude_nodes.0 = '--wrap=x'"),
        ({"attempts_forgiven": -1}, "attempts_forgiven = -1"),
        ({"attempts_forgiven": "all"}, "attempts_forgiven = 'all': must be a whole number"),
        ([], " = []: must be a table"),
    ],
)
def test_a_mistake_in_the_options_is_named(entry: Any, said: str, tmp_path: Path) -> None:
    line = options(tmp_path, {RUN: entry})
    assert line.startswith(f"{tmp_path}/.launch/options.json: {RUN}")
    assert said in line


def test_a_run_of_the_options_is_one_of_the_plan(tmp_path: Path) -> None:
    assert "run id = 'aaaaaaaaaaaa': must be all 64 digits" in options(tmp_path, {RUN[:12]: {}})
    assert "must be that of a run of the plan" in options(tmp_path, {OTHER: {}})
    write_json_atomic(tmp_path / ".launch" / "options.json", {RUN: {"exclude_nodes": ["n[1-3]"]}})
    assert read_options(tmp_path, {RUN}) == {RUN: {"exclude_nodes": ["n[1-3]"]}}


@pytest.mark.parametrize("value", ["12_1", {"12": 1}, [12], ["12_x"], ["../12"], [["12"]]])
def test_the_record_of_cancelled_jobs_is_typed(value: Any, tmp_path: Path) -> None:
    write_json_atomic(tmp_path / ".launch" / "cancelled.json", value)
    with pytest.raises(UserError, match=r"cancelled\.json: "):
        cancelled_jobs(tmp_path)
    write_json_atomic(tmp_path / ".launch" / "cancelled.json", ["12", "12_1", "isoflop:s-1:0"])
    assert cancelled_jobs(tmp_path) == {"12", "12_1", "isoflop:s-1:0"}


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("schema_version",), 2),
        (("submission_id",), "../../elsewhere"),
        (("submission_id",), "s2"),
        (("created_at",), "yesterday"),
        (("created_at",), 1e300),
        (("profile",), []),
        (("profile", "max_failures"), "3"),
        (("snapshot",), 1),
        (("cluster",), "elsewhere"),
        (("arrays",), {}),
        # A part of the names of logs, and of the path of a process.
        (("arrays", 0, "job_id"), "../../12"),
        (("arrays", 0, "job_id"), 12),
        (("arrays", 0, "tasks", 0), "x"),
        (("arrays", 0, "tasks", 0, 0), "../../../../x"),
        (("arrays", 0, "rejected"), True),
        (("arrays", 0, "is_array"), "yes"),
        (("options",), {"microbatch": 1}),
        (("options",), {"micro_batch": "1"}),
        (("more",), 1),
    ],
)
def test_a_submission_is_typed(keys: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    sent.submission()
    (path,) = (tmp_path / ".launch").glob("*/submission.json")
    record = json.loads(path.read_text())
    assert read_submissions(tmp_path)[0].arrays[0].job_id == "12"
    set_value(*keys, to=value)(record)
    write_json_atomic(path, record)
    with pytest.raises(UserError, match=rf"s1/submission\.json: {keys[0]}.* = "):
        read_submissions(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("run_id",), OTHER),
        (("study_folder",), "/tmp/another"),
        (("keep_weights",), "some"),
        (("placement", "num_ranks"), "2"),
        (("sinks",), ["elsewhere"]),
        ((), []),
    ],
)
def test_the_jobs_of_a_submission_are_typed(
    keys: tuple[str, ...], value: Any, tmp_path: Path
) -> None:
    job = Job(study_folder=str(tmp_path), run_id=RUN, data_folder="d", sinks=("wandb",))
    values: dict[str, Any] = {RUN: job.to_json()}
    path = jobs_file(tmp_path, "s1")
    write_json_atomic(path, values)
    assert read_jobs(tmp_path, "s1") == {RUN: job}
    set_value(RUN, *keys, to=value)(values)
    write_json_atomic(path, values)
    with pytest.raises(UserError, match=rf"jobs\.json: {'.'.join((RUN, *keys))}.* = "):
        read_jobs(tmp_path, "s1")
