"""A worker that crashes, hangs or prints costs its own job and no other. No torch in here."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from isoflop.gpu_report.records import Job, ResultsFile, Row, to_json
from isoflop.gpu_report.workers import Worker, worker_environment

SCRIPT = """
import json, os, signal, sys, time
descriptor = int(sys.argv[-1])
def send(message):
    os.write(descriptor, json.dumps(message).encode() + b"\\n")
print("noise on the standard output", flush=True)
send({"ready": True})
for line in sys.stdin:
    job = json.loads(line)
    row = {"stage": job["stage"], "case": job["case"], "what": str(os.getpid())}
    send({"row": row})
    if job["kind"] == "hang":
        time.sleep(1000)
    if job["kind"] == "crash":
        sys.exit("CUDA error: an illegal memory access was encountered")
    if job["kind"] == "killed":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job["kind"] == "long":
        send({"row": row | {"note": "x" * 200_000}})
    send({"done": job["kind"] != "poison"})
"""


@pytest.fixture
def worker(tmp_path):
    made = Worker([sys.executable, "-c", SCRIPT], {}, tmp_path / "log")
    yield made
    made.close()


def run(worker: Worker, kind: str, limit_s: float = 20.0) -> list[Row]:
    return list(worker.run(Job(stage="a", case=kind, kind=kind, limit_s=1), limit_s))


def test_jobs_of_one_process_one_after_the_other(worker):
    first, second = run(worker, "fine"), run(worker, "fine")
    assert [row.outcome for row in first + second] == ["measured", "measured"]
    assert first[0].what == second[0].what


def test_a_crash_costs_its_own_job_and_says_why(worker):
    before, after = run(worker, "crash"), run(worker, "fine")
    assert [row.outcome for row in before] == ["measured", "failed"]
    assert "exit code 1" in before[1].note
    assert "illegal memory access" in before[1].note
    assert [row.outcome for row in after] == ["measured"]
    assert before[0].what != after[0].what


def test_a_process_that_is_killed_is_told_by_its_signal(worker):
    assert "signal 11" in run(worker, "killed")[-1].note


def test_what_hangs_is_ended_and_the_next_job_has_a_new_process(worker):
    begin = time.monotonic()
    rows = run(worker, "hang", limit_s=1.0)
    assert time.monotonic() - begin < 30
    assert [row.outcome for row in rows] == ["measured", "cut"]
    assert [row.outcome for row in run(worker, "fine")] == ["measured"]


def test_a_job_that_leaves_the_device_unusable_is_followed_by_a_new_process(worker):
    [before], [after] = run(worker, "poison"), run(worker, "fine")
    assert before.what != after.what


def test_a_row_longer_than_the_pipe_comes_whole(worker):
    assert len(run(worker, "long")[-1].note) == 200_000


def test_a_process_that_never_starts_is_a_row(tmp_path):
    worker = Worker([sys.executable, "-c", "raise SystemExit('no torch')"], {}, tmp_path / "log")
    [row] = run(worker, "fine")
    assert row.outcome == "failed"
    assert "while it started" in row.note
    assert "no torch" in row.note


def test_rows_are_in_the_file_as_they_come(tmp_path):
    path = tmp_path / "results.jsonl"
    results = ResultsFile(path)
    for number in (1.5, float("nan"), float("inf")):
        results.append(Row(stage="a", case="b", measured=number, details={"x": number}), 0.1)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == len(results.rows)
    assert [line["measured"] for line in lines] == [1.5, None, None]
    assert lines[2]["details"] == {"x": None}


def test_a_row_survives_its_way_through_json():
    row = Row(stage="a", case="b", predicted=2.0, measured=3.0, details={"c": [1, 2]})
    assert Row(**json.loads(json.dumps(to_json(row)))) == row
    assert row.ratio == 1.5
    assert Row(stage="a", case="b", predicted=0.0, measured=3.0).ratio is None


def test_caches_go_where_they_can_be_written_unless_the_user_says_where(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", "given")
    environment = worker_environment(tmp_path, interpret=False)
    assert environment["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    assert (tmp_path / "triton").is_dir()
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
    assert Path(environment["HOME"]).is_dir()
    assert "TRITON_INTERPRET" not in environment, "kernels that are interpreted are not measured"
    first, kernels, given = environment["PYTHONPATH"].split(":")
    assert (Path(first) / "isoflop").is_dir()
    assert (Path(kernels) / "isoflop_kernels").is_dir()
    assert given == "given"
    assert worker_environment(tmp_path, interpret=True)["TRITON_INTERPRET"] == "1"
