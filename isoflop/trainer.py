"""For a trainer of one's own: what is to be trained, how it goes, what came of it.

This file needs the standard library alone, from Python 3.8 on, and may be copied into any
repository. It talks to isoflop by environment variables and files, so that a program in another
language does the same without it.

    from isoflop import trainer

    run = trainer.spec()
    model = Model(seed=run.get("seed", 0))
    for step in range(run.get("steps", 100)):
        loss = train_one_step(model)
        trainer.report(step=step, loss=loss)
        if trainer.should_stop():
            save(model, run["checkpoint_dir"])
            trainer.stop()
    trainer.finish(loss=validate(model), tokens=tokens_seen)

Started by hand, outside of isoflop, the same script still runs: :func:`spec` is empty,
:func:`should_stop` never true, and :func:`report` and :func:`finish` write nothing.

In a program of several ranks all of them may call everything: :func:`report`, :func:`finish` and
:func:`branch` write from rank 0. Ranks may see a signal at different steps; let one of them decide
and broadcast.

Where a study has `[trainer.branch]`, a run leaves its state for shorter ones, before its steps:

    for step in range(first_step, run["steps"]):
        with trainer.branch(step) as folder:
            if folder:
                save(model, folder)
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

CONTINUE = 75
"""Exit code of a run that is to be continued later, from its checkpoint."""

DIVERGED = 77
"""Exit code of a run whose loss is no number any more: it counts as an outcome."""

CURVE_FILE = "curve.jsonl"
"""Beside the result: a line per :func:`report`."""

STOP_FILE = "stop"
"""Beside the result, made when the run is to stop: for ranks that no signal reaches."""

# A launcher within the scheduler's task knows better which rank this is.
_RANKS = (
    *("RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "JAX_PROCESS_ID", "SLURM_PROCID"),
)
_STOP_SIGNALS = ("SIGUSR2", "SIGTERM")
# A file system may be slow to say whether a file is there.
_LOOK_EVERY_S = 1.0


class _State:
    """What this process remembers between calls."""

    stopping = False
    handles_signals = False
    looked_s = float("-inf")
    cut_off = False
    warned = False


def spec() -> dict[str, Any]:
    """Return what this run is; an empty dictionary outside of isoflop.

    The entries are those of the run's spec.json, and: run_id, seed, steps (of the optimizer),
    tokens (to train on), checkpoint_dir, result (the path of its file) and attempt (from 1). Where
    the study has `decay`, decay_start: the steps that are completed before the learning rate falls.

    Raises:
        OSError: the run's spec.json cannot be read.
        ValueError: it is damaged.
    """
    path = os.environ.get("ISOFLOP_SPEC")
    if not path:
        return {}
    found = dict(json.loads(Path(path).read_text(encoding="utf-8")))
    for key in ("run_id", "checkpoint_dir", "result"):
        if (text := os.environ.get("ISOFLOP_" + key.upper())) is not None:
            found[key] = text
    for key in ("seed", "steps", "tokens", "attempt", "decay_start"):
        if (text := os.environ.get("ISOFLOP_" + key.upper())) is not None:
            found[key] = int(text)
    return found


def report(*, step: int, loss: float, tokens: int | None = None, **values: float) -> None:
    """Append a point to the run's curve, for its status while it trains.

    A disk that is full costs the point and one warning, never the run.

    Args:
        step: of the optimizer, counted as the trainer counts.
        loss: of training, in any floating type or a tensor of one element; may be NaN.
        tokens: trained on so far, this step included.
        values: other numbers, such as lr and grad_norm.

    Raises:
        TypeError: not a number.
    """
    result = _result()
    if result is None or _rank() != 0:
        return
    row = {"step": _whole("step", step), "loss": _number("loss", loss)}
    if tokens is not None:
        row["tokens"] = _whole("tokens", tokens)
    row["time_s"] = time.time()
    row.update((name, _number(name, value)) for name, value in values.items())
    _append(result.with_name(CURVE_FILE), json.dumps(row).encode() + b"\n")


def finish(
    *,
    loss: float,
    tokens: int,
    n_params: int | None = None,
    loss_se: float | None = None,
    wall_s: float | None = None,
    peak_mem_bytes: int | None = None,
    **metrics: float,
) -> None:
    """Write the run's result; the program then has to end by itself, with exit code 0.

    A loss that is no finite number ends the program as :func:`diverged` does.

    Args:
        loss: of validation, in the unit that the study names.
        tokens: trained on in the whole run, over all ranks and attempts.
        n_params: parameters of the model, compared with what the plan counted.
        loss_se: standard error of the loss.
        wall_s: seconds of training, over all attempts.
        peak_mem_bytes: the most memory that a device held.
        metrics: other outcomes by name.

    Raises:
        TypeError: not a number.
        OSError: the result cannot be written.
    """
    values: dict[str, Any] = {"loss": _number("loss", loss), "tokens": _whole("tokens", tokens)}
    for name, whole in (("n_params", n_params), ("peak_mem_bytes", peak_mem_bytes)):
        if whole is not None:
            values[name] = _whole(name, whole)
    for name, number in (("loss_se", loss_se), ("wall_s", wall_s)):
        if number is not None:
            values[name] = _number(name, number)
    values["metrics"] = {name: _number(name, value) for name, value in metrics.items()}
    result = _result()
    if result is None:
        return
    if not math.isfinite(values["loss"]):
        diverged("the final loss is {}".format(values["loss"]))
    if _rank() == 0:
        _write(result, values)


def diverged(reason: str) -> NoReturn:
    """End the program with exit code 77: training it again would diverge again.

    The reason is recorded as well, since launchers of ranks turn exit codes into others.
    """
    _end("diverged", reason, DIVERGED)


def stop(reason: str = "asked to stop") -> NoReturn:
    """End the program with exit code 75: the run is to be continued from its checkpoint."""
    _end("stopped", reason, CONTINUE)


@contextlib.contextmanager
def branch(step: int, all_ranks: bool = False) -> Iterator[Path | None]:
    """Give a folder to save the state in where shorter runs go on from this one; else None.

    Enter it before each step, with what a checkpoint has: a shorter run finds the folder's content
    in its `checkpoint_dir`. The folder comes to its place when the block ends, and is removed where
    the block raises. One that cannot be written (OSError) costs a warning, never the run.

    Args:
        step: of the optimizer, as many as are *completed*: 0 before the first. A loop that counts
            from 1, or enters this after its step, has to add or take away one.
        all_ranks: give the folder to every rank, each of which saves a part; they have to wait for
            one another at the end of the block. By default rank 0 gets it and all others None.

    Raises:
        TypeError: not a whole number.
    """
    step = _whole("step", step)
    top, steps = os.environ.get("ISOFLOP_BRANCH_DIR"), os.environ.get("ISOFLOP_BRANCH_STEPS", "")
    if not top or str(step) not in steps.split(",") or not (all_ranks or _rank() == 0):
        yield None
        return
    place = Path(top) / str(step)
    if place.is_dir():
        # Left by the attempt before.
        yield None
        return
    # Of one name for all ranks; isoflop removes what a kill leaves when it starts the command.
    attempt = os.environ.get("ISOFLOP_ATTEMPT", "1")
    folder = place.with_name(f".{step}.{attempt}-00000000.tmp")
    try:
        # Not the folders above: where they are gone the run was moved away.
        folder.mkdir(exist_ok=True)
    except OSError as error:
        _warn(f"no state is left at step {step}, training goes on: {error}")
        yield None
        return
    try:
        yield folder
        if _rank() == 0:
            _flush(folder)
            folder.rename(place)
    except OSError as error:
        _warn(f"no state is left at step {step}, training goes on: {error}")
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def should_stop() -> bool:
    """Return whether the run was told to stop: save a checkpoint, then call :func:`stop`.

    USR2 and TERM tell it, from the first call in the main thread on; what handled them before still
    does so, after. Outside of isoflop they are left alone.
    """
    result = _result()
    if result is None:
        return False
    if not _State.handles_signals and threading.current_thread() is threading.main_thread():
        _State.handles_signals = True
        for name in _STOP_SIGNALS:
            _handle(getattr(signal, name))
    now_s = time.monotonic()
    if not _State.stopping and now_s - _State.looked_s >= _LOOK_EVERY_S:
        _State.looked_s = now_s
        _State.stopping = os.access(result.with_name(STOP_FILE), os.F_OK)
    return _State.stopping


def _handle(number: int) -> None:
    before = signal.getsignal(number)

    def set_flag(received: int, frame: Any) -> None:
        _State.stopping = True
        if callable(before):
            before(received, frame)

    signal.signal(number, set_flag)


def _end(status: str, reason: str, code: int) -> NoReturn:
    reason = " ".join(reason.split())
    print(f"{status}: {reason}", file=sys.stderr, flush=True)
    result = _result()
    # From any rank: the first that ends may take the others with it.
    if result is not None:
        try:
            _write(result, {"status": status, "reason": reason})
        except OSError as error:
            _warn(f"the reason is not recorded: {error}")
    raise SystemExit(code)


def _result() -> Path | None:
    path = os.environ.get("ISOFLOP_RESULT")
    return Path(path) if path else None


def _rank() -> int:
    """Return this process's rank by its launcher's variable; 0 where there is none."""
    for name in _RANKS:
        text = os.environ.get(name, "")
        if text.isdigit():
            return int(text)
    return 0


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (bool, str, bytes)):
        try:
            return float(value)
        # Arrays and tensors raise what they like.
        except Exception:
            pass
    raise TypeError(f"{name} must be one number, not {_shown(value)}")


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, bool):
        try:
            number = operator.index(value)
        except Exception:
            number = -1
        if number >= 0:
            return number
    raise TypeError(f"{name} must be a whole number, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return "{} ({})".format(text if len(text) <= 60 else text[:60] + "...", type(value).__name__)


def _append(path: Path, line: bytes) -> None:
    """Append a line in one write; a line that was cut off before is closed first."""
    line = b"\n" + line if _State.cut_off else line
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            written = os.write(descriptor, line)
        finally:
            os.close(descriptor)
        _State.cut_off = written < len(line)
    except OSError as error:
        if not _State.warned:
            _warn(f"the curve is lost, training goes on: {error}")
        _State.warned = True


def _write(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _flush(folder: Path) -> None:
    """Wait until a folder and all in it are on the disk; links are not followed."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _warn(text: str) -> None:
    print(f"isoflop.trainer: {text}", file=sys.stderr, flush=True)
