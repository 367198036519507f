"""Live progress for the terminal: of the runs of a plan, and of work with an amount.

The runs have a line for each that ended, a table of those at work and an ETA.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from isoflop.cli.tables import counted
from isoflop.launch.trunks import waits_text
from isoflop.numbers import format_count, format_flops, format_seconds
from isoflop.spec import shown_id
from isoflop.units import format_loss, loss_name

if TYPE_CHECKING:
    from rich.console import Console, Group

    from isoflop.data.sources import Progress as Preparation
    from isoflop.launch.local import Session
    from isoflop.launch.workers import Event
    from isoflop.plan.runs import PlannedRun

# Work that is done by then shows no bar.
_QUIET_S = 2.0


@dataclass(slots=True)
class _AtWork:
    run: PlannedRun
    start_s: float
    begins_at: int
    """Steps that it is expected to take over from a checkpoint or a longer run."""
    step: int = 0
    """Steps done, those of earlier attempts included."""
    loss: float | None = None
    first_step: int | None = None
    """Steps done at the first report; the worker reports its first step at once."""
    first_step_s: float = 0.0
    last_s: float = 0.0

    def see(self, step: int, loss: float | None, now_s: float) -> None:
        """Record a report."""
        if self.first_step is None:
            self.first_step, self.first_step_s = step, now_s
        self.step, self.loss, self.last_s = step, loss, now_s

    @property
    def flops_before(self) -> float:
        """What earlier attempts or a longer run had done, where this one began there."""
        return self._flops(self.begins_at if self.first_step is None else self.first_step - 1)

    @property
    def flops_unexpected(self) -> float:
        """What is to be done beyond what was expected; less than 0: it began later."""
        return self._flops(self.begins_at) - self.flops_before

    @property
    def flops_done(self) -> float:
        """What this attempt has done."""
        return 0.0 if self.first_step is None else self._flops(self.step) - self.flops_before

    def _flops(self, step: int) -> float:
        return self.run.flops * step / self.run.spec.steps

    def flops_per_s(self) -> float | None:
        """Return the rate since the first report; None before the second."""
        seconds = self.last_s - self.first_step_s
        if self.first_step is None or seconds <= 0:
            return None
        return self._flops(self.step - self.first_step) / seconds


@dataclass(slots=True)
class Estimator:
    """Seconds left, from the seconds per FLOP of each arch so far; architectures differ widely."""

    num_workers: int
    todo_flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    spent_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    spent_flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def plan(self, arch: str, flops: float) -> None:
        """Add work to do."""
        self.todo_flops[arch] += flops

    def finish(self, arch: str, flops: float, seconds: float) -> None:
        """Move a run's work from to-do to done."""
        self.todo_flops[arch] -= flops
        self.spent_flops[arch] += flops
        self.spent_s[arch] += seconds

    def eta_s(self, at_work: dict[str, list[tuple[float, float]]]) -> float | None:
        """Return seconds until all is done; None before anything is known.

        Args:
            at_work: for each arch, (FLOPs done, seconds spent) of its runs under way.
        """
        flops, seconds, left = {}, {}, {}
        for arch in self.todo_flops:
            under_way = at_work.get(arch, [])
            flops[arch] = self.spent_flops[arch] + sum(f for f, _ in under_way)
            seconds[arch] = self.spent_s[arch] + sum(s for _, s in under_way)
            left[arch] = self.todo_flops[arch] - sum(f for f, _ in under_way)
        if sum(flops.values()) <= 0:
            return None
        mean = sum(seconds.values()) / sum(flops.values())
        total = sum(
            left[arch] * (seconds[arch] / flops[arch] if flops[arch] > 0 else mean) for arch in left
        )
        return max(0.0, total) / self.num_workers


class Watcher:
    """Shows the events of a session as they come; a context manager.

    Args:
        session: what is to be trained.
        console: where to show it.
    """

    def __init__(self, session: Session, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._runs = {run.run_id: run for run in session.plan.unique_runs}
        self._unit = session.plan.study.loss_unit
        self._arch_width = max(
            (len(self._runs[job.run_id].arch) for job in session.jobs), default=0
        )
        self._num_jobs = len(session.jobs)
        self._num_ended = 0
        self._at_work: dict[str, _AtWork] = {}
        self._behind: dict[str, tuple[str, int]] = {}
        """Of runs that are to begin where a longer one passes: its id, and the step."""
        self._elsewhere: set[str] = set()
        """Runs that another process has, by the last that was heard of them."""
        self._has_said_waits = False
        self._estimator = Estimator(num_workers=session.num_workers)
        self._begins_at: dict[str, int] = {}
        for job in session.jobs:
            run = self._runs[job.run_id]
            left = session.steps_left.get(run.run_id, run.spec.steps)
            self._begins_at[run.run_id] = run.spec.steps - left
            self._estimator.plan(run.arch, run.flops * left / run.spec.steps)
        self._live = Live(
            get_renderable=self._table, console=console, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> Watcher:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def stop(self, line: str) -> None:
        """Show no more progress, and print a line."""
        if self._console.is_terminal:
            self._live.stop()
        self._console.print(line, markup=False)

    def on_event(self, event: Event) -> None:
        """Record an event; print a line for each run that ended."""
        run = self._runs[event.job.run_id]
        if event.kind == "start":
            self._behind.pop(run.run_id, None)
            self._at_work[run.run_id] = _AtWork(
                run=run, start_s=time.monotonic(), begins_at=self._begins_at[run.run_id]
            )
        elif event.kind == "behind":
            assert event.longer is not None
            assert event.job.trunk is not None
            self._behind[run.run_id] = (event.longer.run_id, event.job.trunk.fork)
        elif event.kind == "step":
            if run.run_id in self._elsewhere:
                self._elsewhere.remove(run.run_id)
                self._has_said_waits = False
            self._step(self._at_work[run.run_id], event)
        elif event.kind == "wait":
            work = self._at_work.pop(run.run_id)
            self._estimator.plan(run.arch, -work.flops_unexpected)
            self._elsewhere.add(run.run_id)
            self._say_waits()
        elif event.kind == "end":
            self._elsewhere.discard(run.run_id)
            self._end(run, event)
            self._say_waits()

    def _say_waits(self) -> None:
        """Say once that nothing is left but runs that another process has."""
        left = self._num_jobs - self._num_ended
        if self._has_said_waits or not 0 < left == len(self._elsewhere):
            return
        self._has_said_waits = True
        self._console.print(
            f"waiting for {counted(left, 'run')} at work elsewhere: for results, or for heartbeats "
            "to stop"
        )

    def _step(self, work: _AtWork, event: Event) -> None:
        is_first = work.first_step is None
        work.see(event.step, event.loss, time.monotonic())
        if is_first:
            self._estimator.plan(work.run.arch, work.flops_unexpected)

    def _end(self, run: PlannedRun, event: Event) -> None:
        assert event.result is not None
        work = self._at_work.pop(run.run_id)
        seconds = time.monotonic() - work.start_s
        self._estimator.finish(run.arch, run.flops - work.flops_before, seconds)
        self._num_ended += 1
        outcome = event.result.status
        if event.result.loss is not None:
            loss = format_loss(event.result.loss, self._unit)
            outcome += f"  {loss_name(self._unit)} {loss}"
        if event.result.reason is not None:
            outcome += f"  ({event.result.reason})"
        arch = run.arch.ljust(self._arch_width)
        self._console.print(
            f"[{self._num_ended:>{len(str(self._num_jobs))}}/{self._num_jobs}] "
            f"{shown_id(run.run_id)}  {format_flops(run.budget_flops):>7} {arch} "
            f"size {run.size}  {format_seconds(seconds):>6}  {outcome}{self._eta_text()}",
            markup=False,
        )

    def _eta_text(self) -> str:
        left = self._num_jobs - self._num_ended
        eta = self._eta_s()
        return f"  ETA {format_seconds(eta)}" if left and eta is not None else ""

    def _eta_s(self) -> float | None:
        under_way: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for work in self._at_work.values():
            seconds = time.monotonic() - work.start_s
            under_way[work.run.arch].append((work.flops_done, seconds))
        return self._estimator.eta_s(under_way)

    def _table(self) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1), pad_edge=False)
        names = ["run", "budget", "arch", "size", "progress", "step", "loss", "tokens/s"]
        for name in names:
            table.add_column(name, no_wrap=True)
        for run_id, work in self._at_work.items():
            steps = work.run.spec.steps
            table.add_row(
                shown_id(run_id),
                format_flops(work.run.budget_flops),
                work.run.arch,
                str(work.run.size),
                ProgressBar(total=steps, completed=work.step, width=20),
                f"{work.step:,}/{steps:,}",
                "-" if work.loss is None else f"{work.loss:.3f}",
                _tokens_per_s(work),
            )
        for run_id, (longer, fork) in self._behind.items():
            # Nobody has to know of those whose longer run has not begun.
            if longer in self._at_work or longer in self._elsewhere:
                run = self._runs[run_id]
                table.add_row(
                    *(shown_id(run_id), format_flops(run.budget_flops), run.arch, str(run.size)),
                    Text(waits_text(longer, fork), style="dim"),
                )
        head = Text(f"{self._num_ended} of {self._num_jobs} runs{self._eta_text()}", style="bold")
        return Group(head, table)


def _tokens_per_s(work: _AtWork) -> str:
    rate = work.flops_per_s()
    return "-" if rate is None else f"{rate * work.run.n_tokens / work.run.flops:,.0f}"


class Bar:
    """A bar with amount, rate and time left for work of more than two seconds; a context manager.

    Nothing is shown where ``console`` is no terminal.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=None, note="")
        self._start_s = time.monotonic()
        self._shown = False
        self._may_show = console.is_terminal

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._shown:
            self._progress.stop()

    def show(self, what: str, done: float, total: float | None, note: str) -> None:
        """Show where the work is, once it has taken long enough."""
        if not self._may_show or time.monotonic() - self._start_s < _QUIET_S:
            return
        if not self._shown:
            self._progress.start()
            self._shown = True
        self._progress.update(
            self._task, description=what, completed=done, total=total, note=note, refresh=True
        )

    def show_amount(self, what: str, done: int, total: int, unit: str) -> None:
        """Show work whose total is known and whose rate is even."""
        seconds = time.monotonic() - self._start_s
        rate = done / seconds if seconds > 0 else 0.0
        note = f"{format_count(done)}{unit} of {format_count(total)}{unit}"
        if rate > 0:
            left = format_seconds((total - done) / rate)
            note += f"  {format_count(rate)}{unit}/s  ETA {left}"
        self.show(what, done, total, note)

    def show_preparation(self, progress: Preparation) -> None:
        """Show where a preparation of data is."""
        note = f"{progress.num_documents:,} documents, {format_count(progress.num_tokens)} tokens"
        if (rate := progress.bytes_per_second) is not None:
            note += f"  {format_count(rate)}B/s"
        if (eta := progress.eta_seconds) is not None:
            note += f"  ETA {format_seconds(eta)}"
        self.show(progress.stage, progress.num_tokens, progress.goal_tokens, note)
