from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.files import write_json_atomic
from isoflop.launch import run_folder as module
from isoflop.launch.metrics import newest_by_step
from isoflop.launch.process import ProcessIdentity
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import Attempt
from isoflop.plan.planner import make_plan
from made_studies import micro

RUN = make_plan(micro(archs=("mlp",), sizes=(1,))).runs[0]
RESULT = {
    "status": "done",
    "status_reason": None,
    "loss": 1.5,
    "num_steps": RUN.spec.steps,
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path, RUN.run_id)
    made.write_spec(RUN.spec)
    return made


def _dead_process() -> ProcessIdentity:
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json; from isoflop.launch.process import ProcessIdentity as P;"
            "print(json.dumps(P.of_this_process().to_json()))",
        ],
        check=True,
        capture_output=True,
    )
    return ProcessIdentity.from_json(json.loads(child.stdout))


def _change_holder(folder: RunFolder, number: int, **changes: Any) -> None:
    path = folder.path / "attempts" / f"{number:04d}.json"
    record = json.loads(path.read_text())
    record["holder"] |= changes
    write_json_atomic(path, record)


def _beat(folder: RunFolder, heartbeat_s: float, number: int = 1) -> None:
    """A heartbeat as a machine with a clock of its own writes it."""
    lease = {"attempt": number, "heartbeat_s": heartbeat_s, "step": 3, "steps": 40}
    write_json_atomic(folder.path / "lease.json", lease)


def _copy_attempt(folder: RunFolder, number: int, to: int) -> None:
    record = json.loads((folder.path / "attempts" / f"{number:04d}.json").read_text())
    write_json_atomic(folder.path / "attempts" / f"{to:04d}.json", record | {"number": to})


def test_the_layout_of_a_run_folder(folder: RunFolder) -> None:
    attempt = folder.claim({"device": "cpu"})
    assert attempt is not None
    folder.beat(attempt, 3, 40)
    assert folder.write_result(attempt, RESULT)
    folder.end_attempt(attempt, "done", step_range=(0, 39), wall_s=1.5)
    names = {str(p.relative_to(folder.path)) for p in folder.path.rglob("*") if p.is_file()}
    assert names == {"spec.json", "attempts/0001.json", "lease.json", "result.json"}
    record = json.loads((folder.path / "attempts/0001.json").read_text())
    assert record["exit_reason"] == "done"
    assert record["step_range"] == [0, 39]
    assert record["wall_s"] == 1.5
    (again,) = folder.attempts()
    assert (again.step_range, again.wall_s) == ((0, 39), 1.5)
    assert record["details"] == {"device": "cpu"}
    assert record["holder"]["pid"] == os.getpid()


def test_a_live_holder_keeps_its_run(folder: RunFolder) -> None:
    assert folder.claim({}) is not None
    assert folder.claim({}) is None


def test_an_ended_or_dead_holder_gives_way(folder: RunFolder) -> None:
    first = folder.claim({})
    assert first is not None
    folder.end_attempt(first, "failed: x")
    second = folder.claim({})
    assert second is not None
    assert second.number == 2
    _change_holder(folder, 2, **_dead_process().to_json())
    third = folder.claim({})
    assert third is not None
    assert third.number == 3


def test_a_reused_process_number_is_not_the_holder(folder: RunFolder) -> None:
    folder.claim({})
    _change_holder(folder, 1, start_ticks=1)
    assert folder.claim({}) is not None


class Clock:
    """Time as the watcher of a heartbeat has it; something may happen while it sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept_s = 0.0
        self.meanwhile: Callable[[], object] = lambda: None
        monkeypatch.setattr(time, "monotonic", lambda: self.slept_s)
        monkeypatch.setattr(time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# Where the holder's number means nothing: nobody may look it up, here it is that of a live process.
UNSEEN = [
    {"boot_id": "before"},
    {"pid_namespace": 1},
    {"pid_namespace": None},
    {"boot_id": ""},
    {"start_ticks": None},
]
# The holder's clock minus ours.
APART_S = [0.0, 3600.0, -3600.0, 365 * 86400.0, -365 * 86400.0]


def _hold_unseen(folder: RunFolder, apart_s: float, unseen: dict[str, Any]) -> Attempt:
    """Begin an attempt by a holder that cannot be seen, whose clock is so far from ours."""
    attempt = folder.claim({})
    assert attempt is not None
    _change_holder(folder, 1, **unseen)
    _beat(folder, time.time() + apart_s)
    return attempt


@pytest.mark.parametrize("unseen", UNSEEN)
@pytest.mark.parametrize("apart_s", APART_S)
def test_a_holder_that_cannot_be_seen_keeps_its_run_while_its_heart_beats(
    apart_s: float, unseen: dict[str, Any], folder: RunFolder, clock: Clock
) -> None:
    _hold_unseen(folder, apart_s, unseen)

    def beat_late() -> None:
        if clock.slept_s >= module.LEASE_TIMEOUT_S - 2:
            _beat(folder, time.time() + apart_s + clock.slept_s)

    watch = folder.watch()
    clock.meanwhile = beat_late
    assert folder.claim({}, watch=watch) is None
    assert clock.slept_s < module.LEASE_TIMEOUT_S


@pytest.mark.parametrize("unseen", UNSEEN)
@pytest.mark.parametrize("apart_s", APART_S)
def test_a_holder_that_cannot_be_seen_loses_its_run_when_its_heart_stands_still(
    apart_s: float, unseen: dict[str, Any], folder: RunFolder, clock: Clock
) -> None:
    attempt = _hold_unseen(folder, apart_s, unseen)
    # Nobody watched it so far.
    assert folder.claim({}) is None
    assert clock.slept_s == 0
    second = folder.claim({}, watch=folder.watch())
    assert second is not None
    assert second.number == 2
    assert module.LEASE_TIMEOUT_S <= clock.slept_s < module.LEASE_TIMEOUT_S + 5
    # Whoever it was, it is not dead for sure: it may come back, and has no say any more.
    assert not folder.write_result(attempt, RESULT)


def test_a_watch_ends_with_the_attempt_the_next_claim_or_a_signal(
    folder: RunFolder, clock: Clock
) -> None:
    attempt = folder.claim({})
    assert attempt is not None
    _change_holder(folder, 1, pid_namespace=1)
    watch = folder.watch()
    assert folder.claim({}, watch=watch, should_stop=lambda: "SIGTERM") is None
    assert clock.slept_s <= 2
    clock.meanwhile = lambda: folder.end_attempt(attempt, "interrupted: SIGTERM")
    assert folder.claim({}, watch=watch) is None
    assert clock.slept_s <= 4
    clock.meanwhile = lambda: None
    assert folder.watch() is None
    second = folder.claim({})
    assert second is not None
    # It can be seen.
    assert folder.watch() is None
    _change_holder(folder, 2, pid_namespace=1)
    # Another attempt is another holder, of whom the old watch tells nothing.
    clock.slept_s += 2 * module.LEASE_TIMEOUT_S
    assert folder.claim({}, watch=watch) is None
    watch, before_s = folder.watch(), clock.slept_s
    clock.meanwhile = lambda: _copy_attempt(folder, 2, 3)
    assert folder.claim({}, watch=watch) is None
    assert clock.slept_s <= before_s + 2


def _unseen(study: Path, number: int) -> RunFolder:
    """A run whose holder was killed, or not, where it cannot be seen."""
    made = RunFolder(study, f"{number:064x}"[::-1])
    made.path.mkdir(parents=True)
    assert made.claim({}) is not None
    _change_holder(made, 1, boot_id="before")
    _beat(made, 1e9)
    return made


def test_many_holders_that_cannot_be_seen_cost_one_wait_in_all(
    tmp_path: Path, clock: Clock
) -> None:
    folders = [_unseen(tmp_path, number) for number in range(50)]
    live, late = folders[7], folders[49]
    watches = module.watch_all(tmp_path, [folder.run_id for folder in folders])
    assert len(watches) == 50
    # One beats once, a moment after all were looked at; another while the last are begun.
    clock.meanwhile = lambda: _beat(live, 1e9 + 1)

    def claim(folder: RunFolder) -> bool:
        return folder.claim({}, watch=watches[folder.run_id]) is not None

    assert [claim(folder) for folder in folders[:-1]] == [f is not live for f in folders[:-1]]
    assert module.LEASE_TIMEOUT_S <= clock.slept_s < module.LEASE_TIMEOUT_S + 1
    _beat(late, 1e9 + 1)
    assert not claim(late)
    # Whoever gave a sign of life is watched anew, from then on.
    watches |= module.watch_all(tmp_path, [live.run_id, late.run_id])
    clock.meanwhile = lambda: None
    before_s = clock.slept_s
    assert claim(live)
    assert claim(late)
    assert clock.slept_s - before_s == pytest.approx(module.LEASE_TIMEOUT_S)


def test_a_damaged_run_is_not_watched_and_keeps_no_other_from_it(tmp_path: Path) -> None:
    first, second = (_unseen(tmp_path, number) for number in range(2))
    (first.path / "attempts" / "0001.json").write_text("{")
    assert list(module.watch_all(tmp_path, [first.run_id, second.run_id])) == [second.run_id]


def test_one_look_goes_by_dates_that_are_not_in_the_future(folder: RunFolder) -> None:
    attempt = folder.claim({})
    assert attempt is not None
    _change_holder(folder, 1, pid_namespace=1)
    now_s = time.time()

    def look(*, start_s: float, beat_s: float, file_s: float) -> bool:
        path = folder.path / "attempts" / "0001.json"
        write_json_atomic(path, json.loads(path.read_text()) | {"start_s": now_s + start_s})
        _beat(folder, now_s + beat_s)
        os.utime(folder.path / "lease.json", (now_s, now_s + file_s))
        return folder.attempt_at_work() is not None

    old_s, year_s = -2 * module.LEASE_TIMEOUT_S, 365 * 86400.0
    assert look(start_s=old_s, beat_s=-5, file_s=old_s)
    assert not look(start_s=old_s, beat_s=old_s, file_s=old_s)
    # Clocks that are a little apart.
    assert look(start_s=60, beat_s=60, file_s=60)
    # The holder's clock is wrong, the file system's is right.
    assert look(start_s=year_s, beat_s=year_s, file_s=-5)
    assert not look(start_s=year_s, beat_s=year_s, file_s=old_s)
    # Nothing that could be told from a holder that died.
    assert not look(start_s=year_s, beat_s=year_s, file_s=year_s)


def test_only_the_newest_attempt_may_write_and_only_once(folder: RunFolder) -> None:
    old = folder.claim({})
    assert old is not None
    _change_holder(folder, 1, **_dead_process().to_json())
    new = folder.claim({})
    assert new is not None
    assert not folder.write_result(old, RESULT)
    assert folder.result() is None
    assert folder.write_result(new, RESULT)
    assert not folder.write_result(new, RESULT | {"loss": 9.0})
    result = folder.result()
    assert result is not None
    assert (result.loss, result.attempt) == (1.5, 2)


def test_many_claims_at_once_have_one_winner(folder: RunFolder) -> None:
    won = []
    barrier = threading.Barrier(8)

    def claim() -> None:
        barrier.wait()
        won.append(folder.claim({}))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([w for w in won if w is not None]) == 1


WHOLE = {"schema_version": 1, "run_id": RUN.run_id, "attempt": 1, **RESULT}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "result.json'.*valid JSON"),
        ("{", "result.json'.*valid JSON"),
        ('{"loss": NaN}', "result.json'.*NaN is no number"),
        ('{"loss": 1e999}', "result.json'.*1e999 is out of range"),
        ('{"loss": ' + 5000 * "9" + "}", "result.json'.*valid JSON"),
        ("[" * 500 + "]" * 500, "result.json'.*nested deeper"),
        ("[]", "result.json: file = "),
        (WHOLE | {"schema_version": 2}, "result.json: schema_version = 2: must be 1"),
        (WHOLE | {"run_id": "0" * 64}, "result.json: run_id = .*that of run"),
        (WHOLE | {"num_steps": "/tmp/another"}, "num_steps = '/tmp/another': must be a whole num"),
        (WHOLE | {"num_steps": 10}, f"result.json: num_steps = 10: must be {RUN.spec.steps}"),
        (WHOLE | {"loss": None}, "result.json: loss = None: must be a number where the run is"),
        (WHOLE | {"loss": "1.5"}, "result.json: loss = '1.5': must be a number"),
        (WHOLE | {"loss": True}, "result.json: loss = True: must be a number"),
        (WHOLE | {"peak_mem_bytes": 10**30}, "result.json: peak_mem_bytes = "),
        (WHOLE | {"status_reason": ["x" * 1000]}, "result.json: status_reason = .*…: must be text"),
        ({k: v for k, v in WHOLE.items() if k != "num_steps"}, "num_steps = None: must be given"),
    ],
)
def test_a_damaged_result_is_named_and_never_overwritten(
    folder: RunFolder, text: Any, named: str
) -> None:
    path = folder.path / "result.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(UserError, match=named) as refused:
        folder.result()
    assert len(str(refused.value)) < 600
    attempt = folder.claim({})
    assert attempt is not None
    before = path.read_text()
    assert not folder.write_result(attempt, RESULT)
    assert path.read_text() == before


def test_a_result_may_be_no_pipe(folder: RunFolder) -> None:
    # Whose opening would wait for ever.
    os.mkfifo(folder.path / "result.json")
    with pytest.raises(UserError, match="Not a regular file"):
        folder.result()


def test_a_spec_of_another_run_is_refused(folder: RunFolder) -> None:
    other = make_plan(micro(archs=("mlp",), sizes=(2,))).runs[0]
    write_json_atomic(folder.path / "spec.json", other.spec.to_json())
    with pytest.raises(UserError, match="must be the spec of run"):
        folder.write_spec(RUN.spec)


def test_seconds_of_earlier_attempts_count_and_cut_lines_do_not(folder: RunFolder) -> None:
    rows = [
        {"attempt": 1, "wall_s": 1.0},
        {"attempt": 1, "wall_s": 2.5},
        {"attempt": 2, "wall_s": 4},
    ]
    lines = [json.dumps(row) for row in rows] + ['{"attempt": 2, "wal']
    (folder.path / "metrics.jsonl").write_text("\n".join(lines))
    first, second, third = (
        Attempt(
            number=number,
            holder=ProcessIdentity.of_this_process(),
            start_s=0.0,
            end_s=None,
            exit_reason=None,
            step_range=None,
            wall_s=None,
        )
        for number in (1, 2, 3)
    )
    assert folder.previous_wall_s(first) == 0
    assert folder.previous_wall_s(second) == 2.5
    assert folder.previous_wall_s(third) == 6.5


def test_an_attempt_that_ended_knows_its_seconds_better_than_its_rows(folder: RunFolder) -> None:
    first = folder.claim({})
    assert first is not None
    (folder.path / "metrics.jsonl").write_text('{"attempt": 1, "step": 3, "wall_s": 1.0}\n')
    folder.end_attempt(first, "interrupted: SIGTERM", step_range=(0, 9), wall_s=4.5)
    second = folder.claim({})
    assert second is not None
    assert folder.previous_wall_s(second) == 4.5


def test_of_a_step_done_twice_the_last_attempt_counts(folder: RunFolder) -> None:
    def row(attempt: int, step: int, loss: float) -> dict[str, Any]:
        return {"attempt": attempt, "step": step, "loss": loss, "grad_norm": 1.0}

    rows = [
        row(1, 0, 5.0),
        row(1, 2, 4.0),
        row(1, 4, 3.0),
        {"attempt": 1, "event": "checkpoint_failed", "step": 4, "reason": "full"},
        {"attempt": 2, "event": "resumed", "step": 2},
        row(2, 2, 4.5),
        {"attempt": 2, "event": "evaluation", "step": 2, "loss": 9.0},
        # An orphan of the first attempt that has not noticed yet.
        row(1, 2, 7.0),
    ]
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    (folder.path / "metrics.jsonl").write_text(lines)
    found = newest_by_step(folder.metrics())
    assert {step: r["loss"] for step, r in found.items()} == {0: 5.0, 2: 4.5, 4: 3.0}
