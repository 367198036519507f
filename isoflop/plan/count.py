"""Counts of models whose code is the user's, made in a subprocess: planning imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from isoflop.accounting.count import Count
from isoflop.errors import UserError, shown
from isoflop.files import cache_folder, read_json, sha256_json, write_json_atomic

_PACKAGE = Path(__file__).parents[1]
# What the counts rest on, besides the user's code and torch.
_COUNTING = ("accounting", "families", "model")


@dataclass(frozen=True, kw_only=True, slots=True)
class CountRequest:
    """One model to count."""

    target: str
    """`package:build`, or `hf:` and the path of a configuration."""
    values: Mapping[str, bool | int | float | str]
    """Arguments of build, or fields of the configuration."""
    seq_len: int
    """Tokens per sequence."""


def count_many(
    requests: Sequence[CountRequest],
    *,
    folder: Path,
    timeout_s: float,
    digest: str | None,
    field: str = "trainer.count",
) -> list[Count]:
    """Return the counts of models, in order.

    The code is imported and run in one subprocess for all models that were not counted before, and
    sees no GPU. What it prints, and its traceback, are in a log in the cache folder.

    Args:
        requests: the models.
        folder: of the user's code; paths of configurations start there.
        timeout_s: for all of them together.
        digest: of the code, by which counts are kept; None: they are not kept.
        field: what named the models, for messages.

    Raises:
        UserError: a model cannot be built or counted, or not in time.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise UserError(field, str(folder), "in a folder that is there", "correct its path")
    cache = cache_folder() / "counted"
    paths = [cache / f"{_key(request, folder, digest)}.json" for request in requests]
    counts: dict[Path, Count] = {}
    missing: dict[Path, CountRequest] = {}
    for path, request in zip(paths, requests, strict=True):
        kept = None if digest is None else _kept(path)
        if kept is None:
            missing[path] = request
        else:
            counts[path] = kept
    if missing:
        log = _log_file(cache, sha256_json([path.stem for path in missing])[:16])
        answers = _run(list(missing.values()), folder, timeout_s, log, field)
        for (path, request), answer in zip(missing.items(), answers, strict=True):
            counts[path] = count = _read_answer(answer, request, log, field)
            if digest is not None:
                # Without a cache the next plan takes some seconds more.
                with contextlib.suppress(OSError):
                    write_json_atomic(path, count.to_json())
    return [counts[path] for path in paths]


def _kept(path: Path) -> Count | None:
    if not path.is_file():
        return None
    # A damaged file is as good as none.
    with contextlib.suppress(OSError, UserError):
        return Count.from_json(read_json(path, "count"))
    return None


def _key(request: CountRequest, folder: Path, digest: str | None) -> str:
    """Return a digest of all that a count rests on."""
    from importlib.metadata import version

    kind, _, path = request.target.partition(":")
    configuration, libraries = "", ["torch"]
    if kind == "hf":
        libraries.append("transformers")
        with contextlib.suppress(OSError):
            configuration = hashlib.sha256((folder / path).read_bytes()).hexdigest()
    versions = []
    for library in libraries:
        with contextlib.suppress(ModuleNotFoundError):
            versions.append(version(library))
    # JSON, since a number like 0.5 has no canonical form.
    asked = json.dumps(dataclasses.asdict(request), sort_keys=True)
    where = str(folder) if digest is None else digest
    return sha256_json([asked, where, configuration, _digest_of_counting(), *versions])


def _digest_of_counting() -> str:
    code = hashlib.sha256()
    for part in _COUNTING:
        for path in sorted((_PACKAGE / part).rglob("*.py")):
            code.update(path.read_bytes())
    return code.hexdigest()


def _log_file(cache: Path, name: str) -> Path:
    """Return a file for the output of the user's code, in the cache where that can be written."""
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    folder = cache if os.access(cache, os.W_OK) else Path(tempfile.gettempdir())
    return folder / f"{name}.log"


def _run(
    requests: Sequence[CountRequest], folder: Path, timeout_s: float, log: Path, field: str
) -> list[Any]:
    """Return what the subprocess answers to each request."""
    with tempfile.TemporaryDirectory(prefix="isoflop-count-") as scratch:
        asked, answered = Path(scratch, "requests.json"), Path(scratch, "answers.json")
        write_json_atomic(asked, [dataclasses.asdict(request) for request in requests])
        with log.open("wb") as output:
            # -P: a file of the user's called types.py is not to be taken for Python's own.
            command = [sys.executable, "-P", "-m", "isoflop.model.target"]
            status = _call([*command, str(asked), str(answered)], folder, timeout_s, output)
        if status is None:
            allowed = f"counted within {timeout_s:g} s ({requests[0].target}; its output: {log})"
            raise UserError(field, "no answer", allowed, "raise count_timeout_s, or declare FLOPs")
        if status or not answered.is_file():
            how = f"signal {-status}" if status < 0 else f"exit code {status}"
            allowed = f"code that comes to its end, not to {how} ({_last_line(log)}; see {log})"
            raise UserError(field, requests[0].target, allowed, "mend it, or declare the FLOPs")
        answers: list[Any] = read_json(answered, "counts")
        return answers


def _call(command: list[str], folder: Path, timeout_s: float, output: IO[bytes]) -> int | None:
    """Return the exit status of a command; None where it took too long and was killed."""
    # In a group of its own, so that what it starts ends with it.
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    """Return this process's variables, for another folder, without a GPU and without a network."""
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    whole = [str(Path(path).absolute()) for path in paths]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([*whole, str(_PACKAGE.parent)]),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        # One core is plenty, and other work may be running.
        "OMP_NUM_THREADS": "1",
    }


def _read_answer(answer: Mapping[str, Any], request: CountRequest, log: Path, field: str) -> Count:
    if "count" in answer:
        return Count.from_json(answer["count"])
    value = request.target
    if request.values:
        value += f" with {', '.join(f'{k}={v}' for k, v in request.values.items())}"
    allowed, do = answer["allowed"], answer["do"]
    if answer["is_traced"]:
        allowed = f"{allowed} (its traceback: {log})"
    raise UserError(field, shown(value), allowed, do)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
