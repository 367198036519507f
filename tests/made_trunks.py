"""Runs of one trunk on made-up data, each alone or from where the others leave off."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from isoflop.data.windows import TrainWindows
from isoflop.launch.execute import execute
from isoflop.launch.job import Job, JobResult, Sibling, TrunkJob
from isoflop.launch.metrics import METRICS_FILE, USAGE_FILE
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.weights import final_weights
from isoflop.placement import Placement
from isoflop.recipe import MICRO_V3, RECIPES, get_recipe
from isoflop.spec import run_id
from made_data import MadeData
from made_training import made_spec

# Two steps of warm-up, and a decay from 8, 11 and 16 completed steps on.
RECIPE = dataclasses.replace(MICRO_V3, name="short", warmup_steps=2)
STEPS = (10, 13, 20)


class _Stream:
    """Tokens that lie in memory."""

    dtype = np.dtype(np.uint16)

    def __init__(self, tokens: NDArray[np.uint16]) -> None:
        self._tokens = tokens
        self.num_tokens = len(tokens)

    def read_into(self, first: int, out: NDArray[np.uint16]) -> None:
        out[:] = self._tokens[first : first + len(out)]


class Data(MadeData):
    """A corpus of 21 windows of 16 tokens, some of which end a document: an epoch ends in the
    middle of a batch of 4, and the runs here take several."""

    identity = SimpleNamespace(data_id="made")

    def train_windows(self, seq_len: int) -> Any:
        rng = np.random.default_rng(3)
        tokens = rng.integers(97, 105, 21 * 16).astype(np.uint16)
        tokens[rng.integers(0, len(tokens), 30)] = self.end_of_text_id
        return TrainWindows(_Stream(tokens), seq_len, begin_id=1)  # type: ignore[arg-type]


class Killed(BaseException):
    """What nothing in the package catches, as a kill leaves it no time to."""


class MadeTrunk:
    """Runs that differ in steps alone, in a study's folder."""

    def __init__(
        self,
        folder: Path,
        family: str = "mlp",
        *,
        steps: tuple[int, ...] = STEPS,
        placement: Placement | None = None,
        keeps: bool = False,
        data: Any = None,
        **changes: Any,
    ) -> None:
        self.folder = folder
        self.data = data or Data()
        self._placement = placement or Placement()
        self._keeps = keeps
        RECIPES[RECIPE.name] = RECIPE
        changes = {"recipe": RECIPE.name, "n_layers": 1, **changes}
        self.specs = [made_spec(family, steps=each, **changes) for each in steps]
        for spec in self.specs:
            RunFolder(folder, run_id(spec)).write_spec(spec)

    def of(self, number: int) -> RunFolder:
        return RunFolder(self.folder, run_id(self.specs[number]))

    def fork(self, number: int) -> int:
        spec = self.specs[number]
        return get_recipe(spec.recipe).decay_start(spec.steps)

    def job(self, number: int, *, shares: bool = True) -> Job:
        every = [
            Sibling(run_id=run_id(spec), steps=spec.steps, fork=self.fork(place))
            for place, spec in enumerate(self.specs)
        ]
        own = every[number]
        trunk = TrunkJob(
            steps=own.steps,
            fork=own.fork,
            siblings=tuple(other for other in every if other is not own),
            keeps=self._keeps and own is every[-1],
        )
        return Job(
            study_folder=str(self.folder),
            run_id=own.run_id,
            data_folder="d",
            keep_weights="all",
            placement=self._placement,
            trunk=trunk if shares else None,
        )

    def go(
        self,
        number: int,
        *,
        stop_after: int | None = None,
        shares: bool = True,
        on_step: Callable[[Any], None] = lambda metrics: None,
        **others: Any,
    ) -> JobResult:
        """Executes a run; it is asked to stop once this many steps are completed."""
        completed = 0

        def each(metrics: Any, steps: int) -> None:
            nonlocal completed
            completed = metrics.step + 1
            on_step(metrics)

        def should_stop() -> str | None:
            return "SIGUSR2" if stop_after is not None and completed >= stop_after else None

        job = self.job(number, shares=shares)
        return execute(job, self.data, on_step=each, should_stop=should_stop, **others)

    def kill(self, number: int, *, after: int) -> None:
        """Executes a run that is killed in its callback of a step, as if by SIGKILL."""

        def on_step(metrics: Any) -> None:
            if metrics.step + 1 == after:
                raise Killed

        try:
            self.go(number, on_step=on_step)
        except Killed:
            self.bury(number)
        else:
            raise AssertionError("it ended before it was killed")

    def whole(self, *numbers: int) -> None:
        """Executes runs, one after the other, to their ends."""
        for number in numbers:
            ending = self.go(number)
            assert ending.status == "done", ending.reason

    def bury(self, number: int) -> None:
        """Makes the newest attempt that of a process that is gone."""
        path = sorted((self.of(number).path / "attempts").iterdir())[-1]
        path.write_text(path.read_text().replace('"start_ticks": ', '"start_ticks": 1'))

    def events(self, number: int, *kinds: str) -> list[dict[str, Any]]:
        return [row for row in self.of(number).metrics() if row.get("event") in kinds]

    def forks(self, number: int) -> list[int]:
        folder = self.of(number).forks
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def ending(self, number: int) -> Ending:
        return Ending.of(self.of(number))


@dataclasses.dataclass
class Ending:
    """What came of a run, but for times."""

    result: dict[str, Any]
    weights: bytes | None
    metrics: list[dict[str, Any]]
    usage: list[dict[str, Any]]
    spikes: list[dict[str, Any]]

    @staticmethod
    def of(folder: RunFolder) -> Ending:
        result = json.loads((folder.path / "result.json").read_text())
        timed = ("attempt", "wall_s", "step_s_median", "tokens_per_s", "peak_mem_bytes")
        trunk = ("trunk_steps", "trunk_wall_s")
        path = final_weights(folder)
        spikes = {row["step"]: row for row in folder.metrics() if row.get("event") == "spike"}
        return Ending(
            result={name: v for name, v in result.items() if name not in (*timed, *trunk)},
            weights=None if path is None else path.read_bytes(),
            metrics=_table(folder.path / METRICS_FILE),
            usage=_table(folder.path / USAGE_FILE),
            spikes=[{**row, "attempt": 0} for _, row in sorted(spikes.items())],
        )


def _table(path: Path) -> list[dict[str, Any]]:
    """A table without what differs between attempts."""
    if not path.exists():
        return []
    timed = ("attempt", "wall_s", "tokens_per_s", "flops_per_s", "share_of_peak")
    table = pq.read_table(path)
    return table.drop_columns([name for name in timed if name in table.column_names]).to_pylist()


def alone(folder: Path, number: int, family: str = "mlp", **others: Any) -> Ending:
    """The run as it ends where it shares nothing."""
    made = MadeTrunk(folder, family, **others)
    assert made.go(number, shares=False).status in ("done", "diverged")
    return made.ending(number)
