"""One of several processes that train one run together.

    torchrun --standalone --nproc-per-node 2 -m isoflop.launch.rank JOB.json

    srun --ntasks 8 --ntasks-per-node 4 python -m isoflop.launch.rank JOB.json

JOB.json holds the fields of isoflop.launch.job.Job; its placement names the layout. USR2, TERM
and INT, to any rank, stop the run at its next step boundary. torchrun passes on TERM and INT; USR2
ends it and not its ranks, unless it was given --signals-to-handle=SIGTERM,SIGINT,SIGUSR2. Exit
codes are those of isoflop.launch.single: 0 done, 1 failed or diverged, 75 stopped or held and to be
continued; torchrun makes 1 of every code but 0.

What happens is told on standard output, one JSON object a line: `{"rank", "pid"}` at the start,
`{"step", "steps", "loss"}` a few times a second from the main rank, `{"rank", "ending"}` in the
end. With --launched (isoflop.launch.torchrun) the process also ends when its standard input does,
so that no rank outlives the one that started it, and its exit code is 0 once it told its ending.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import failure_reason
from isoflop.files import read_json
from isoflop.launch.execute import execute
from isoflop.launch.job import Ending, Job
from isoflop.launch.reporter import Reporter
from isoflop.launch.signals import StopFlag

if TYPE_CHECKING:
    from isoflop.train.ranks import Ranks

EXIT_CODES = {"done": 0, "interrupted": 75, "held": 75}


def main() -> int:
    """Train the job's run with the other ranks; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m isoflop.launch.rank")
    parser.add_argument("job", type=Path)
    parser.add_argument("--launched", action="store_true")
    arguments = parser.parse_args()
    if arguments.launched:
        threading.Thread(target=_end_with_standard_input, daemon=True).start()
    ending = _run(arguments.job, StopFlag())
    return 0 if arguments.launched else EXIT_CODES.get(ending.status, 1)


def _end_with_standard_input() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


def _run(path: Path, should_stop: Callable[[], str | None]) -> Ending:
    from isoflop.train.parallel import ranks_from_environment

    job = Job.from_json(read_json(path, "job"))
    with ranks_from_environment(job.placement) as ranks:
        _tell(rank=ranks.rank, pid=os.getpid())
        try:
            ending = _execute(job, ranks, should_stop)
        except Exception as error:
            failed = Ending(status="failed", reason=failure_reason(error))
            _tell(rank=ranks.rank, ending=dataclasses.asdict(failed))
            raise
        _tell(rank=ranks.rank, ending=dataclasses.asdict(ending))
    return ending


def _execute(job: Job, ranks: Ranks, should_stop: Callable[[], str | None]) -> Ending:
    from isoflop.data.windows import open_data

    data = open_data(Path(job.data_folder))
    return execute(job, data, on_step=Reporter(_tell_step), should_stop=should_stop, ranks=ranks)


def _tell_step(step: int, steps: int, loss: float) -> None:
    _tell(step=step, steps=steps, loss=loss)


def _tell(**message: Any) -> None:
    # One write per line, since all ranks share the pipe.
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
