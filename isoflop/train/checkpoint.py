"""Checkpoints on disk: whole, sealed folders; the newest complete one wins.

    ckpt/STEP/weights.safetensors    parameters by name
              optimizer.safetensors  optimizer state as `NAME/exp_avg`, random states, step times
              state.json             schema, run id, completed steps, meta; size and sha256 of the
                                     two files; a seal: the sha256 of all this

STEP is the number of completed optimizer steps. A folder is written under a temporary name, its
files are flushed, and it is renamed: after any crash it is there whole or not at all. Nothing is
unpickled.

Of a model that is split over ranks, each writes files of its own (isoflop.train.shards) into the
same folder, and the main rank seals and renames it once all have: `weights-00001-of-00008` and
`optimizer-00001-of-00008` instead. The weights of a run's last step are in one file always.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoflop.files import dump_json, fsync_path, read_regular, sha256_file
from isoflop.train.shards import (
    KINDS,
    Names,
    Rows,
    Shard,
    StoredTensors,
    described,
    shard_names,
    write_together,
)

if TYPE_CHECKING:
    from isoflop.train.ranks import Ranks

SCHEMA = "isoflop-checkpoint/1"
SHARDS_SCHEMA = "isoflop-checkpoint/2"
NUM_KEPT = 2
WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
# Besides optimizer state, optimizer.safetensors holds tensors under this prefix.
EXTRA = "extra:"
# What a state that is no table, or tables without end, raises.
_OTHER_JSON = (AttributeError, TypeError, RecursionError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A verified checkpoint. Of one in shards, a tensor is read when it is asked for."""

    step: int
    """Completed optimizer steps."""
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    extra: dict[str, Tensor]
    meta: dict[str, Any]


class CheckpointError(Exception):
    """A checkpoint could not be written; older ones are untouched."""


class _Damaged(Exception):
    """Why a checkpoint cannot be used."""


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: the run's `ckpt` folder; made when the first checkpoint is written, if the folder
            above it is there: that of a run may have been moved.
        run_id: whose they are; those of another run are not used.
        may_write: asked before a checkpoint is written and right before it gets its name; False
            for a process that another one has succeeded, or whose folder was moved.
        on_damaged: called with each checkpoint that is passed over, and the reason.
        num_kept: the last ones stay when another is saved; None: all of them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run_id: str,
        may_write: Callable[[], bool] = lambda: True,
        on_damaged: Callable[[int, str], None] = lambda step, reason: None,
        num_kept: int | None = NUM_KEPT,
    ) -> None:
        self.folder = folder
        self.run_id = run_id
        self._may_write = may_write
        self._on_damaged = on_damaged
        self._num_kept = num_kept

    def steps(self) -> list[int]:
        """Return the completed steps of all checkpoints, ascending; damaged ones included."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        extra_tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
    ) -> bool:
        """Write the checkpoint of ``step`` completed steps; remove all but the last ones.

        A complete checkpoint of the same step stays as it is.

        Returns:
            False if this process may not write any more; nothing changed.

        Raises:
            CheckpointError: it could not be written (disk full, read-only folder).
        """
        temporary = self._temporary(step, secrets.randbits(48))
        tensors = dict(optimizer_state) | {EXTRA + k: v for k, v in extra_tensors.items()}
        try:
            if not self._may_write():
                return False
            self.folder.mkdir(exist_ok=True)
            temporary.mkdir()
            save_file(dict(weights), temporary / WEIGHTS_FILE)
            save_file(tensors, temporary / OPTIMIZER_FILE)
            files = {name: described(temporary / name) for name in (WEIGHTS_FILE, OPTIMIZER_FILE)}
            return self._seal(temporary, step, meta, files)
        except (OSError, SafetensorError) as error:
            raise _not_written(step, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def save_shard(
        self,
        step: int,
        shard: Shard,
        extra_tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        ranks: Ranks,
    ) -> bool:
        """Write one rank's part of a checkpoint; all ranks call this together.

        Args:
            step: completed optimizer steps.
            shard: the rank's own part.
            extra_tensors: as in :meth:`save`; only the main rank's are written.
            meta: likewise.
            ranks: the processes that share the run.

        Returns:
            False if the main rank may not write any more; nothing changed.

        Raises:
            CheckpointError: a rank could not write its part (on all of them), or the main rank
                could not begin or seal it (there).
        """
        temporary = self._agreed(step, ranks)
        if temporary is None:
            return False
        extra = {EXTRA + name: Rows(0, value) for name, value in extra_tensors.items()}
        parts = (shard.weights, {**shard.optimizer, **(extra if ranks.is_main else {})})
        names = _names_by_rank(ranks.size, whole_weights=shard.has_whole_weights)
        try:
            files = write_together(temporary, names, parts, ranks)
            return not ranks.is_main or self._seal(temporary, step, meta, files)
        except (OSError, SafetensorError) as error:
            raise _not_written(step, error) from error
        finally:
            if ranks.is_main:
                shutil.rmtree(temporary, ignore_errors=True)

    def _agreed(self, step: int, ranks: Ranks) -> Path | None:
        """Return the folder that all ranks write to; None: the main rank may not write."""
        number, trouble = 0, None
        if ranks.is_main:
            try:
                if self._may_write():
                    number = 1 + secrets.randbits(48)
                    self.folder.mkdir(exist_ok=True)
                    self._temporary(step, number).mkdir()
            except OSError as error:
                number, trouble = 0, error
        number = int(ranks.broadcast(float(number)))
        if trouble is not None:
            raise _not_written(step, trouble) from trouble
        return self._temporary(step, number) if number else None

    def _temporary(self, step: int, number: int) -> Path:
        return self.folder / f".{step}.{number:x}.tmp"

    def _seal(
        self, temporary: Path, step: int, meta: Mapping[str, Any], files: Mapping[str, Any]
    ) -> bool:
        """Write the state of a checkpoint whose files are there, and give its folder the name."""
        self._write_state(temporary, step, meta, files)
        _flush(temporary)
        if not self._may_write():
            return False
        self._put(temporary, step)
        # A process that was succeeded meanwhile must not take its successor's away.
        if self._may_write():
            self._remove_all_but(self._last(step))
        return True

    def read(self, step: int) -> Checkpoint:
        """Return the checkpoint of ``step`` completed steps, which is known to be complete."""
        return self._read(step)

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is complete and this run's; None if there is none."""
        found = (self.read_whole(step) for step in reversed(self.steps()))
        return next((checkpoint for checkpoint in found if checkpoint is not None), None)

    def read_whole(self, step: int) -> Checkpoint | None:
        """Return the checkpoint of ``step`` completed steps; None if it is not complete."""
        try:
            return self._read(step)
        except (_Damaged, OSError, SafetensorError) as error:
            self._on_damaged(step, _one_line(error))
            return None

    def is_whole(self, step: int) -> bool:
        """Return whether there is a complete checkpoint of ``step`` completed steps."""
        try:
            self._verify(step)
        except (_Damaged, OSError):
            return False
        return True

    def clean_up(self) -> None:
        """Remove what killed writers left; for the run's holder only."""
        if self.folder.is_dir():
            for path in self.folder.glob(".*.tmp"):
                shutil.rmtree(path, ignore_errors=True)

    def _write_state(
        self, folder: Path, step: int, meta: Mapping[str, Any], files: Mapping[str, Any]
    ) -> None:
        state = {
            "schema": SCHEMA if OPTIMIZER_FILE in files else SHARDS_SCHEMA,
            "run_id": self.run_id,
            "step": step,
            "meta": dict(meta),
            "files": dict(files),
        }
        (folder / STATE_FILE).write_text(dump_json(state | {"seal": _seal(state)}))

    def _put(self, temporary: Path, step: int) -> None:
        """Give a written folder its name; only a damaged one that has the name makes way."""
        path = self.folder / str(step)
        if path.exists():
            if self.is_whole(step):
                return
            path.rename(path.with_name(f"{temporary.name}.old.tmp"))
        # Onto a checkpoint that another process has put there by now, this fails.
        temporary.rename(path)
        fsync_path(self.folder)

    def _last(self, step: int) -> set[int]:
        if self._num_kept is None:
            return set(self.steps())
        return set([there for there in self.steps() if there <= step][-self._num_kept :])

    def _remove_all_but(self, kept: set[int]) -> None:
        for step in set(self.steps()) - kept:
            shutil.rmtree(self.folder / str(step), ignore_errors=True)
        self.clean_up()

    def _verify(self, step: int) -> dict[str, Any]:
        """Return state.json of a checkpoint, after checking it and the files it names."""
        folder = self.folder / str(step)
        try:
            state = json.loads(read_regular(folder / STATE_FILE))
            seal = state.pop("seal")
        except (FileNotFoundError, ValueError, KeyError, *_OTHER_JSON) as error:
            raise _Damaged(f"{STATE_FILE}: {type(error).__name__}") from None
        if seal != _seal(state):
            raise _Damaged(f"{STATE_FILE}: its seal does not fit")
        schemas = (SCHEMA, SHARDS_SCHEMA)
        for name, values in (("schema", schemas), ("run_id", (self.run_id,)), ("step", (step,))):
            if state.get(name) not in values:
                raise _Damaged(f"{STATE_FILE}: {name} is {state.get(name)!r}")
        if not _is_typed(state):
            raise _Damaged(f"{STATE_FILE}: meta or files is not as it is written")
        for name, file in state["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != file["num_bytes"]:
                raise _Damaged(f"{name}: missing or cut off")
            if sha256_file(path) != file["sha256"]:
                raise _Damaged(f"{name}: its sha256 does not fit")
        return state

    def _read(self, step: int) -> Checkpoint:
        state = self._verify(step)
        folder = self.folder / str(step)
        if state["schema"] == SCHEMA:
            tensors = load_file(folder / OPTIMIZER_FILE)
            extra = {k: tensors.pop(k) for k in list(tensors) if k.startswith(EXTRA)}
            return _checkpoint(state, load_file(folder / WEIGHTS_FILE), tensors, extra)
        weights, optimizer = (
            StoredTensors([folder / name for name in state["files"] if name.startswith(kind)])
            for kind in KINDS
        )
        return _checkpoint(state, weights, optimizer, optimizer.take(EXTRA))


def _checkpoint(
    state: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    extra: Mapping[str, Tensor],
) -> Checkpoint:
    return Checkpoint(
        step=state["step"],
        weights=weights,
        optimizer=optimizer,
        extra={name.removeprefix(EXTRA): value for name, value in extra.items()},
        meta=state["meta"],
    )


def _names_by_rank(num_ranks: int, *, whole_weights: bool) -> list[Names]:
    """Return the files of weights and of optimizer state that each rank writes."""
    weights: list[str | None] = list(shard_names(KINDS[0], num_ranks))
    if whole_weights:
        weights = [WEIGHTS_FILE, *([None] * (num_ranks - 1))]
    return list(zip(weights, shard_names(KINDS[1], num_ranks), strict=True))


def _is_typed(state: Mapping[str, Any]) -> bool:
    """Return whether a state names a checkpoint's files, and no others, with sizes and digests."""
    files = state.get("files")
    return (
        isinstance(state.get("meta"), dict)
        and isinstance(files, dict)
        and files.keys() in _file_sets(state["schema"], len(files))
        and all(isinstance(f, dict) and {"num_bytes", "sha256"} <= f.keys() for f in files.values())
    )


def _file_sets(schema: str, num_files: int) -> list[set[str]]:
    """Return which files a checkpoint of so many may have."""
    if schema == SCHEMA:
        return [{WEIGHTS_FILE, OPTIMIZER_FILE}]
    if num_files < len(KINDS):
        return []
    by_rank = [
        _names_by_rank(num_files - 1, whole_weights=True),
        _names_by_rank(num_files // 2, whole_weights=False),
    ]
    return [{name for names in ranks for name in names if name is not None} for ranks in by_rank]


def _seal(state: Mapping[str, Any]) -> str:
    """Return the sha256 of a state as JSON."""
    # Python writes a float so that it reads back as the same number: text is a form to hash.
    text = json.dumps(state, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        fsync_path(path)
    fsync_path(folder)


def _not_written(step: int, error: Exception) -> CheckpointError:
    return CheckpointError(f"cannot write the checkpoint of step {step}: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
