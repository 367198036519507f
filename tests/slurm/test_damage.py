"""A damaged record costs one line that names its file, and its own run; every record, every way."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from isoflop.cli import main
from isoflop.data.prepare import prepare
from isoflop.files import write_json_atomic
from isoflop.launch.job import Job
from isoflop.launch.slurm.records import jobs_file, record_cancelled, write_options
from isoflop.placement import Placement
from isoflop.plan.estimate import estimate_for
from isoflop.plan.estimate.stored import store_estimates
from made_listing import listing
from slurm.made_scheduler import Scheduler, Sent, line, use

PRESENT: dict[str, tuple[str, ...]] = {
    "status": ("status",),
    "json": ("status", "--json"),
    "show": ("show",),
    "cancel": ("cancel",),
    "submit": ("submit", "--cluster", "local", "--dry-run"),
    "retry": ("retry", "--failed", "all", "--cluster", "local", "--dry-run"),
}
"""Verbs that write nothing: looked at, asked nothing, or dry."""

MOST_KINDS = 80

OTHERS = (None, True, -1, 10**30, 1.5, "x", "../../x", [], {}, [[]], {"x": {}})
TEXTS = (b"", b"{", b"\xff\xfe", b"NaN", b'{"a": 1e999}', b"[" * 400 + b"]" * 400, b"9" * 5000)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    made = use(tmp_path / "bin", monkeypatch)
    made.queue(line("12_1", "RUNNING", node="n1"), line("12_2", "PENDING"))
    return made


@pytest.fixture
def sent(tmp_path: Path) -> Sent:
    """A study that holds a record of every kind."""
    made = Sent(tmp_path / "study")
    data = prepare("sotu-embedded", "byte")
    made.submission(options={"micro_batch": 2}, max_failures=2)
    placement = dataclasses.asdict(Placement())
    made.result(0)
    for index, reason in enumerate(("done", None, None, "failed: ValueError: x")):
        made.run(index).write_spec(made.plan.unique_runs[index].spec)
        made.attempt(index, reason, job=f"12_{index}", placement=placement)
    made.heartbeat(1, step=3)
    made.metrics(1, [{"attempt": 1, "step": step, "wall_s": step / 2} for step in range(3)])
    jobs = {
        run_id: Job(study_folder=str(made.folder), run_id=run_id, data_folder=str(data)).to_json()
        for run_id in made.ids
    }
    write_json_atomic(jobs_file(made.folder, "s1"), jobs)
    write_options(made.folder, {made.ids[3]: {"exclude_nodes": ["n7"], "attempts_forgiven": 1}})
    record_cancelled(made.folder, ["11", "11_1"])
    store_estimates(made.plan, estimate_for(made.plan, made.folder), made.folder)
    return made


def invoke(folder: Path, verb: str) -> Result:
    name, *rest = PRESENT[verb]
    return CliRunner().invoke(main, [name, str(folder), *rest])


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and index of a record, outside in; of a list the first only."""
    entries = list(value.items()) if isinstance(value, dict) else []
    entries += list(enumerate(value[:1])) if isinstance(value, list) else []
    for key, inner in entries:
        yield (*place, key)
        yield from places(inner, (*place, key))


def damaged(text: bytes) -> Iterator[bytes]:
    """A record in every kind of damage."""
    yield from TEXTS
    yield text[: len(text) // 2]
    value = json.loads(text)
    others = itertools.cycle(OTHERS)
    for other in OTHERS:
        yield json.dumps(other).encode()
    for place in places(value):
        for kind in ("removed", "swapped", "swapped again"):
            copy = json.loads(text)
            inner = copy
            for key in place[:-1]:
                inner = inner[key]
            if kind == "removed":
                del inner[place[-1]]
            else:
                inner[place[-1]] = next(others)
            yield json.dumps(copy).encode()


def check(done: Result, named: str) -> None:
    """No traceback: either all is well, or lines of which one names the file."""
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1, 2)
    lines = done.stderr.splitlines()
    # Nobody can be asked here, so that nothing is ended.
    if done.exit_code == 2 and "--yes" not in lines[-1]:
        assert named in lines[-1], lines
    assert all(len(line) < 1000 for line in lines)


RECORDS = {
    "runs/{0}/result.json": 0,
    "runs/{0}/spec.json": 0,
    "runs/{1}/spec.json": 1,
    "runs/{1}/attempts/0001.json": 1,
    "runs/{1}/lease.json": 1,
    ".launch/s1/jobs.json": None,
    ".launch/options.json": None,
    ".launch/cancelled.json": None,
    ".launch/s1/submission.json": ...,
    "estimates.json": None,
    "plan.json": ...,
}
"""Whose each record is: a run's by its number, no run's, or (...) that of all."""


def names(sent: Sent) -> list[str]:
    return [name.format(*(sent.run(i).path.name for i in range(4))) for name in RECORDS]


def states(done: Result) -> dict[str, str]:
    return {run["run_id"]: run["state"] for run in json.loads(done.stdout)["runs"]}


def test_every_kind_of_record_is_walked(sent: Sent) -> None:
    found = {str(path.relative_to(sent.folder)) for path in sent.folder.rglob("*.json")}
    same = {"spec.json", "0001.json"}
    assert {n for n in found - set(names(sent)) if Path(n).name not in same} == set()


@pytest.mark.slow
@pytest.mark.parametrize("record", RECORDS)
def test_a_damaged_record_costs_a_line(record: str, sent: Sent, told: Scheduler) -> None:
    path = sent.folder / names(sent)[list(RECORDS).index(record)]
    text, owner = path.read_bytes(), RECORDS[record]
    others = [run_id for i, run_id in enumerate(sent.ids) if i != owner and owner is not ...]
    before = states(invoke(sent.folder, "json"))
    assert sorted(before.values()) == ["done", "failed", "requeued", "running"]
    verbs = itertools.cycle(PRESENT)
    kinds = list(damaged(text))
    for damage in kinds[:: -(-len(kinds) // MOST_KINDS)]:
        path.write_bytes(damage)
        there = listing(sent.folder)
        for verb in itertools.islice(verbs, 2):
            done = invoke(sent.folder, verb)
            check(done, path.name)
            if verb == "json" and record != "plan.json":
                assert done.exit_code == 0
                after = states(done)
                assert {i: after[i] for i in others} == {i: before[i] for i in others}
        assert listing(sent.folder) == there
