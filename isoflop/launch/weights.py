"""Which final weights a study keeps: none, the best of each arch and budget, or all.

A run's checkpoints are needed until it has a result; then it is not resumed, and they are
removed or reduced to ckpt/STEP/weights.safetensors (with state.json, which seals its sha256) of the
last step. What a command of the user's own keeps in trainer/ stays whole or goes whole. Everything
here may be cut off anywhere, repeated, and done by several processes at once.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from isoflop.errors import UserError
from isoflop.files import is_plain_file
from isoflop.launch.run_folder import RunFolder
from isoflop.plan.planner import Plan

# Of a checkpoint's files, those of a run that will not be resumed.
_KEPT_FILES = ("weights.safetensors", "state.json")


def final_weights(folder: RunFolder) -> Path | None:
    """Return the file of a finished run's weights; None: no result, or it was not kept."""
    result = folder.result()
    if result is None or result.status != "done":
        return None
    path = folder.checkpoints / str(result.num_steps) / "weights.safetensors"
    return path if is_plain_file(path) else None


def remove_checkpoints(folder: RunFolder) -> None:
    """Remove all checkpoints of a run that has a result."""
    assert folder.result() is not None
    _remove(folder.checkpoints)


def keep_final_weights(folder: RunFolder) -> None:
    """Reduce the checkpoints of a run that is done to its final weights."""
    for path in _beside_final_weights(folder):
        _remove(path)


def remove_trainer_folder(folder: RunFolder) -> None:
    """Remove what a command of the user's own keeps; links in it are not followed.

    Raises:
        OSError: something of it cannot be removed.
    """
    if folder.trainer.is_dir():
        shutil.rmtree(folder.trainer)


def prune_weights(folder: Path, plan: Plan) -> None:
    """Remove the weights of finished runs that the study does not keep.

    Args:
        folder: the study's folder.
        plan: its plan.
    """
    for path in list(superfluous_weights(folder, plan)):
        _remove(path)


def superfluous_weights(folder: Path, plan: Plan) -> Iterator[Path]:
    """Yield files and folders of checkpoints that the finished runs of a study do not need.

    Whatever is removed of them, a better run is finished, and results do not change: so the best
    one of all never is, in whatever order runs end.
    """
    finished = {}
    for run in plan.unique_runs:
        # A damaged one says nothing of its weights: they stay.
        with contextlib.suppress(UserError):
            result = RunFolder(folder, run.run_id).result()
            if result is not None:
                finished[run.run_id] = result
    done = ((rid, r.loss) for rid, r in finished.items() if r.status == "done")
    kept = _kept(plan, {rid: loss for rid, loss in done if loss is not None})
    for run_id in finished:
        run_folder = RunFolder(folder, run_id)
        if run_id in kept:
            yield from _beside_final_weights(run_folder)
        elif run_folder.checkpoints.is_dir():
            yield run_folder.checkpoints
        if plan.study.keep_weights == "none" and run_folder.trainer.is_dir():
            yield run_folder.trainer


def _beside_final_weights(folder: RunFolder) -> Iterator[Path]:
    """Yield what lies among the checkpoints of a run that is done, apart from final weights."""
    result = folder.result()
    assert result is not None
    if not folder.checkpoints.is_dir():
        return
    final = folder.checkpoints / str(result.num_steps)
    for path in sorted(folder.checkpoints.iterdir()):
        if path != final:
            yield path
    for path in sorted(final.iterdir()) if final.is_dir() else ():
        if path.name not in _KEPT_FILES:
            yield path


def _remove(path: Path) -> None:
    if path.is_dir():
        # Folders nested a thousand deep are not ours, and stay, as all that cannot be removed.
        with contextlib.suppress(RecursionError):
            shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _kept(plan: Plan, losses: dict[str, float]) -> set[str]:
    """Return the runs whose weights stay, by the loss of those that are done."""
    if plan.study.keep_weights == "none":
        return set()
    if plan.study.keep_weights == "all":
        return set(losses)
    best: dict[tuple[str, int], str] = {}
    for run in plan.runs:
        place, rid = (run.arch, run.budget_flops), run.run_id
        # Of equal losses the first in the plan's order is the best, for every process.
        if rid in losses and (place not in best or losses[rid] < losses[best[place]]):
            best[place] = rid
    return set(best.values())
