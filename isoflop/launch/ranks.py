r"""Several processes (ranks) that train one run: how they are started, and what each of them does.

:func:`run_ranks` starts them on this machine by torchrun. Each is this module as a program:

    torchrun --standalone --nproc-per-node 2 -m isoflop.launch.ranks JOB.json

    srun --ntasks 8 --ntasks-per-node 4 --kill-on-bad-exit=1 \
        python -m isoflop.launch.ranks JOB.json

JOB.json holds the fields of isoflop.launch.job.Job; its placement names the layout. USR2, TERM
and INT, to any rank, stop the run at its next step boundary. torchrun passes on TERM and INT; USR2
ends it and not its ranks, unless it was given --signals-to-handle=SIGTERM,SIGINT,SIGUSR2. Exit
codes are those of isoflop.launch.single: 0 done, 1 failed or diverged, 75 stopped or held and to be
continued; torchrun makes 1 of every code but 0.

A rank writes to standard output, one JSON object a line: `{"rank", "pid"}` at the start,
`{"step", "steps", "loss"}` a few times a second from the main rank, `{"rank", "result"}` in the
end. With --launched (:func:`run_ranks`) the process also ends when its standard input does, so that
no rank outlives the one that started it, and its exit code is 0 once it wrote its result; --watch
passes a watch on (isoflop.launch.run_folder).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from isoflop.disk import reason_of
from isoflop.files import read_json, write_json_atomic
from isoflop.launch.callbacks import Reporter, StopFlag
from isoflop.launch.execute import execute
from isoflop.launch.job import DONE, Job, JobResult
from isoflop.launch.run_folder import Watch

if TYPE_CHECKING:
    from isoflop.train.ranks import Ranks


POLL_S = 0.2
# Time for the other ranks to end after the first one did, since one that waits for a rank that is
# gone may not notice by itself; and for torchrun to end after its ranks.
END_GRACE_S = 20.0
# At the end of torchrun's output: the rank that failed before the others did, and how.
_ROOT_CAUSE = re.compile(
    r"Root Cause.*?^\s*rank\s*:\s*(\d+).*?^\s*exitcode\s*:\s*(-?\d+)", re.DOTALL | re.MULTILINE
)
_LAST_CHARACTERS = 2000


def run_ranks(
    job: Job,
    num_ranks: int,
    *,
    on_step: Callable[[int, int, float], None],
    should_stop: Callable[[], str | None],
    watch: Watch | None = None,
) -> JobResult:
    """Train one run in ``num_ranks`` new processes; return how it ended.

    torchrun finds a free port. The ranks lead sessions of their own, so no signal of a terminal
    reaches them; they end with this process, however it ends, and when one of them dies.

    Args:
        job: which run, and where; its placement names the layout.
        num_ranks: processes, one per GPU on CUDA.
        on_step: called a few times a second with the completed steps, the run's number of steps
            and the loss.
        should_stop: called a few times a second. A reason ends the run at its next step boundary;
            the name of a signal is passed on as it is, anything else as SIGTERM.
        watch: of the run's holder where that cannot be seen.
    """
    with tempfile.TemporaryDirectory(prefix="isoflop-ranks-") as name:
        folder = Path(name)
        write_json_atomic(folder / "job.json", job.to_json())
        with _torchrun(job, num_ranks, folder, watch) as process:
            messages = _follow(process, on_step, should_stop)
        stderr = (folder / "stderr").read_text("utf-8")
        result = _result(messages, process.returncode, stderr)
        if result.status == "failed":
            # The tracebacks of all ranks.
            sys.stderr.write(stderr)
        return result


@contextmanager
def _torchrun(
    job: Job, num_ranks: int, folder: Path, watch: Watch | None
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={num_ranks}", "-m", "isoflop.launch.ranks", "--launched"]
    if watch is not None:
        command += ["--watch", watch.signs, repr(watch.since_s)]
    threads = str(job.placement.num_threads)
    with (folder / "stderr").open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [*command, str(folder / "job.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Close the standard input: the ranks end with it, and torchrun with them."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(END_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _follow(
    process: subprocess.Popen[str],
    on_step: Callable[[int, int, float], None],
    should_stop: Callable[[], str | None],
) -> list[Mapping[str, Any]]:
    """Return all messages but those of steps, once every rank has ended or had its time to."""
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    messages: list[Mapping[str, Any]] = []
    stop: str | None = None
    signalled: set[int] = set()
    deadline_s = float("inf")
    while time.monotonic() < deadline_s:
        stop = stop or should_stop()
        if stop is not None:
            _signal_ranks(messages, stop, signalled)
        try:
            line = lines.get(timeout=POLL_S)
        except queue.Empty:
            continue
        if line is None:
            break
        message = _message(line)
        if "step" in message:
            on_step(message["step"], message["steps"], message["loss"])
        else:
            messages.append(message)
        if "result" in message:
            deadline_s = min(deadline_s, time.monotonic() + END_GRACE_S)
    return messages


def _read(stdout: IO[str], lines: queue.Queue[str | None]) -> None:
    with stdout:
        for line in stdout:
            lines.put(line)
    lines.put(None)


def _message(line: str) -> Mapping[str, Any]:
    """Return a rank's message; nothing for a line that a library printed."""
    try:
        message = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}


def _signal_ranks(messages: list[Mapping[str, Any]], stop: str, signalled: set[int]) -> None:
    """Signal each rank once, those that begin later included."""
    number = signal.Signals.__members__.get(stop, signal.SIGTERM)
    for pid in {m["pid"] for m in messages if "pid" in m} - signalled:
        signalled.add(pid)
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _result(messages: list[Mapping[str, Any]], code: int, stderr: str) -> JobResult:
    """Return the main rank's result, and why the others failed where they did."""
    results = {m["rank"]: JobResult(**m["result"]) for m in messages if "result" in m}
    main = results.get(0)
    if main is not None and main.status != "failed":
        return main
    reasons = {rank: result.reason for rank, result in sorted(results.items())}
    found = _ROOT_CAUSE.search(stderr)
    if found is not None and int(found[1]) not in reasons:
        reasons = {int(found[1]): f"died (exit code {found[2]})", **reasons}
    if not reasons:
        last_lines = stderr[-_LAST_CHARACTERS:].strip()
        return JobResult(status="failed", reason=f"torchrun ended with code {code}: {last_lines}")
    if len(set(reasons.values())) == 1 and len(reasons) > 1:
        return JobResult(status="failed", reason=next(iter(reasons.values())))
    reason = "; ".join(f"rank {rank}: {why}" for rank, why in reasons.items())
    return JobResult(status="failed", reason=reason)


def main() -> int:
    """Train the job's run with the other ranks; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m isoflop.launch.ranks")
    parser.add_argument("job", type=Path)
    parser.add_argument("--launched", action="store_true")
    parser.add_argument("--watch", nargs=2, metavar=("SIGNS", "SINCE_S"))
    arguments = parser.parse_args()
    if arguments.launched:
        threading.Thread(target=_end_with_standard_input, daemon=True).start()
    given = arguments.watch
    watch = None if given is None else Watch(signs=given[0], since_s=float(given[1]))
    result = _run(arguments.job, watch, StopFlag())
    return DONE if arguments.launched else result.exit_code


def _end_with_standard_input() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


def _run(path: Path, watch: Watch | None, should_stop: Callable[[], str | None]) -> JobResult:
    from isoflop.train.parallel import ranks_from_environment

    job = Job.from_json(read_json(path, "job"))
    with ranks_from_environment(job.placement) as ranks:
        _tell(rank=ranks.rank, pid=os.getpid())
        try:
            result = _execute(job, ranks, watch, should_stop)
        except Exception as error:
            failed = JobResult(status="failed", reason=reason_of(error))
            _tell(rank=ranks.rank, result=dataclasses.asdict(failed))
            raise
        _tell(rank=ranks.rank, result=dataclasses.asdict(result))
        if result.status == "failed":
            ranks.abandon()
    return result


def _execute(
    job: Job, ranks: Ranks, watch: Watch | None, should_stop: Callable[[], str | None]
) -> JobResult:
    from isoflop.data.windows import open_data

    data = open_data(Path(job.data_folder))
    on_step = Reporter(_tell_step)
    return execute(job, data, on_step=on_step, should_stop=should_stop, ranks=ranks, watch=watch)


def _tell_step(step: int, steps: int, loss: float) -> None:
    _tell(step=step, steps=steps, loss=loss)


def _tell(**message: Any) -> None:
    # One write per line, since all ranks share the pipe.
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
