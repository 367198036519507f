"""`isoflop retry`: what is changed for runs that failed: less memory, other nodes, a new count."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.launch.collect import RunState
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm import records
from isoflop.launch.slurm.failures import num_counted
from isoflop.launch.status import StudyStatus
from isoflop.placement import Placement
from isoflop.plan.estimate.memory import ModelShape, estimate_memory, format_bytes, model_shape
from isoflop.spec import RunSpec, shown_id

# An option counts as the next one where its estimated peak is at most this share of the peak that
# was too much: what saves less is not worth another try.
MEMORY_SHARE = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """Runs to send again, and what is decided for each."""

    options: Mapping[str, Mapping[str, Any]]
    """As isoflop.launch.slurm.records keeps them, by run id."""
    lines: tuple[str, ...]
    """What is done about each run, for people."""
    excluded_nodes: tuple[str, ...]

    @property
    def run_ids(self) -> list[str]:
        """The runs to send."""
        return list(self.options)


def failed_runs(status: StudyStatus, wanted: Collection[str] | None = None) -> list[RunState]:
    """Return all runs that failed or are lost, each once; with ids ``wanted`` only those."""
    unique = {state.run.run_id: state for state in status.states}
    return [
        state
        for run_id, state in unique.items()
        if state.kind is not None and (wanted is None or run_id in wanted)
    ]


def plan_retry(
    study_folder: Path,
    status: StudyStatus,
    kind: str,
    max_devices: int,
    wanted: Collection[str] | None = None,
) -> Retry:
    """Decide what is tried next for all failed or lost runs of a kind.

    Args:
        study_folder: the study's folder.
        status: where its runs stand.
        kind: one of failures.KINDS, or `all`.
        max_devices: that one run may have.
        wanted: run ids; None: all.
    """
    chosen = [s for s in failed_runs(status, wanted) if kind in ("all", s.kind)]
    recorded = records.read_options(study_folder, {s.run.run_id for s in status.states})
    nodes = sorted({node for s in chosen if (node := _bad_node(s)) is not None})
    options, lines = {}, []
    for state in chosen:
        run_id = state.run.run_id
        before = recorded.get(run_id, {})
        line, own = _decide(study_folder, state, max_devices)
        excluded = sorted({*before.get("exclude_nodes", ()), *nodes})
        options[run_id] = {**before, **own, "exclude_nodes": excluded}
        lines.append(f"{shown_id(run_id)} {state.kind}: {line}")
    return Retry(options=options, lines=tuple(lines), excluded_nodes=tuple(nodes))


def next_layout(
    shape: ModelShape, now: Placement, max_devices: int
) -> tuple[dict[str, Any], int] | None:
    """Return the next layout of the memory plan after one that was too much.

    In this order: a smaller micro-batch, checkpointing of activations, more devices with sharded
    parameters; the first that is estimated to need clearly less.

    Args:
        shape: the model.
        now: the layout that was too much.
        max_devices: that one run may have.

    Returns entries of a [placement] table and the estimated peak in bytes per device; None: nothing
    needs clearly less.
    """
    limit = MEMORY_SHARE * _peak(shape, now)
    for layout in _layouts(shape, now, max_devices):
        peak = _peak(shape, layout)
        if peak <= limit:
            return _entries(layout), peak
    return None


def entries_text(entries: Mapping[str, Any]) -> str:
    """Return entries of a [placement] table, for people."""
    return ", ".join(f"{key} = {value}" for key, value in entries.items())


def _decide(study_folder: Path, state: RunState, max_devices: int) -> tuple[str, dict[str, Any]]:
    """Return a line for people, and what is recorded for the run."""
    folder = RunFolder(study_folder, state.run.run_id)
    own: dict[str, Any] = {"attempts_forgiven": num_counted(folder)}
    # A command of one's own lays itself out.
    if state.kind != "oom" or not isinstance(state.run.spec, RunSpec):
        return "again, as it was", own
    found = next_layout(model_shape(state.run.spec), _placement(state), max_devices)
    if found is None:
        return "again, as it was: the memory plan has nothing that needs clearly less", own
    entries, peak = found
    line = f"{entries_text(entries)}; estimated peak {format_bytes(peak)} per device"
    return line, own | {"placement": entries}


def _placement(state: RunState) -> Placement:
    """Return the newest attempt's placement."""
    recorded = None if state.attempt is None else state.attempt.details.placement
    return Placement() if recorded is None else recorded


def _bad_node(state: RunState) -> str | None:
    if state.kind != "node":
        return None
    attempt, job = state.attempt, state.job
    # Not that of an attempt before the job that the scheduler knows.
    if attempt is not None and attempt.node and (job is None or job.job_id == attempt.job_id):
        return attempt.node
    return state.job.node if state.job is not None else None


def _layouts(shape: ModelShape, now: Placement, max_devices: int) -> Iterator[Placement]:
    """Yield layouts from the cheapest to the most cautious."""
    for num_devices in _device_counts(shape, now.num_ranks, max_devices):
        # More devices make room only where the model is split among them.
        parallel = now.parallel if num_devices == now.num_ranks else "fsdp"
        for checkpointing in sorted({now.checkpoint_activations, True}):
            share = shape.batch_size // num_devices
            for micro_batch in (d for d in range(share, 0, -1) if share % d == 0):
                yield Placement(
                    parallel=parallel,
                    num_ranks=num_devices,
                    micro_batch=micro_batch,
                    checkpoint_activations=checkpointing,
                )


def _device_counts(shape: ModelShape, first: int, most: int) -> Sequence[int]:
    counts = [first]
    while 2 * counts[-1] <= most and shape.batch_size % (2 * counts[-1]) == 0:
        counts.append(2 * counts[-1])
    return counts


def _peak(shape: ModelShape, layout: Placement) -> int:
    share = -(-shape.batch_size // layout.num_ranks)
    at_a_time = layout.micro_batch or share
    return estimate_memory(
        shape,
        micro_batch=at_a_time,
        num_devices=layout.num_ranks,
        sharded=layout.parallel == "fsdp",
        checkpointing=layout.checkpoint_activations,
        accumulates=at_a_time < share,
    ).peak_bytes


def _entries(layout: Placement) -> dict[str, Any]:
    return {
        "parallel": layout.parallel,
        "ranks": layout.num_ranks,
        "micro_batch": layout.micro_batch,
        "checkpoint_activations": layout.checkpoint_activations,
    }
