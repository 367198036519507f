"""Checkpoints on disk: whole, sealed folders; the newest complete one wins.

    ckpt/STEP/weights.safetensors    parameters by name
              optimizer.safetensors  optimizer state as `NAME/exp_avg`, random states, step times
              state.json             schema, run id, completed steps, meta; size and sha256 of the
                                     two files; a seal: the sha256 of all this

STEP is the number of completed optimizer steps. A folder is written under a temporary name, its
files are flushed, and it is renamed: after any crash it is there whole or not at all. Nothing is
unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoflop.files import dump_json, fsync_path, read_regular, sha256_file

SCHEMA = "isoflop-checkpoint/1"
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
    """A verified checkpoint, read into memory."""

    step: int
    """Completed optimizer steps."""
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
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
        temporary = self.folder / f".{step}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        tensors = dict(optimizer_state) | {EXTRA + k: v for k, v in extra_tensors.items()}
        try:
            if not self._may_write():
                return False
            self.folder.mkdir(exist_ok=True)
            temporary.mkdir()
            save_file(dict(weights), temporary / WEIGHTS_FILE)
            save_file(tensors, temporary / OPTIMIZER_FILE)
            self._write_state(temporary, step, meta)
            _flush(temporary)
            if not self._may_write():
                return False
            self._put(temporary, step)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot write the checkpoint of step {step}: {_one_line(error)}"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
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

    def _write_state(self, folder: Path, step: int, meta: Mapping[str, Any]) -> None:
        state = {
            "schema": SCHEMA,
            "run_id": self.run_id,
            "step": step,
            "meta": dict(meta),
            "files": {
                name: {
                    "num_bytes": (folder / name).stat().st_size,
                    "sha256": sha256_file(folder / name),
                }
                for name in (WEIGHTS_FILE, OPTIMIZER_FILE)
            },
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
        for name, value in (("schema", SCHEMA), ("run_id", self.run_id), ("step", step)):
            if state.get(name) != value:
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
        tensors = load_file(self.folder / str(step) / OPTIMIZER_FILE)
        return Checkpoint(
            step=step,
            weights=load_file(self.folder / str(step) / WEIGHTS_FILE),
            optimizer={k: v for k, v in tensors.items() if not k.startswith(EXTRA)},
            extra={k.removeprefix(EXTRA): v for k, v in tensors.items() if k.startswith(EXTRA)},
            meta=state["meta"],
        )


def _is_typed(state: Mapping[str, Any]) -> bool:
    """Return whether a state names the two files, and no others, with their sizes and digests."""
    files = state.get("files")
    return (
        isinstance(state.get("meta"), dict)
        and isinstance(files, dict)
        and files.keys() == {WEIGHTS_FILE, OPTIMIZER_FILE}
        and all(isinstance(f, dict) and {"num_bytes", "sha256"} <= f.keys() for f in files.values())
    )


def _seal(state: Mapping[str, Any]) -> str:
    """Return the sha256 of a state as JSON."""
    # Python writes a float so that it reads back as the same number: text is a form to hash.
    text = json.dumps(state, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        fsync_path(path)
    fsync_path(folder)


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
