"""A study's folder with every kind of record, and damage to it that is the same for a seed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from isoflop.files import write_json_atomic
from isoflop.launch.collect import collected_rows
from isoflop.launch.job import Job
from isoflop.launch.slurm.records import jobs_file, record_cancelled, write_options
from isoflop.placement import Placement
from isoflop.plan.estimate import estimate_for, write_with_estimates
from isoflop.plan.planner import make_plan
from isoflop.tables import write_runs
from made_studies import micro
from slurm.made_scheduler import Sent

OOM = "failed: out of memory: mlp, width 64, 2 layers"


def make_study(folder: Path) -> Sent:
    """Write a study of eight runs in every state there is."""
    plan = make_plan(micro(archs=("mlp", "swiglu"), sizes=(1, 2, 3, 4), keep_weights="best"))
    write_with_estimates(plan, estimate_for(plan, folder), folder)
    sent = Sent(folder, plan)
    placement = dataclasses.asdict(Placement())
    for index, run in enumerate(plan.unique_runs):
        write_json_atomic(sent.run(index).path / "spec.json", run.spec.to_json())
    for index in range(3):
        sent.attempt(index, "done", job=f"12_{index}", placement=placement)
        _result(sent, index)
    sent.attempt(3, "diverged", job="12_3")
    _result(sent, 3, "diverged")
    sent.attempt(4, OOM, job="12_4", placement=placement)
    sent.attempt(5, None, job="12_5", age_s=50.0)
    sent.heartbeat(5, step=3, age_s=-(10.0**6))
    sent.attempt(6, None, job="12_6", age_s=5000.0)
    sent.submission(
        "12",
        tasks=[[index] for index in range(7)],
        setup=["touch executed"],
        modules=["cuda"],
        options={"compile": True},
    )
    sent.submission(None, tasks=[[7]], name="s2", age_s=900.0)
    sent.submission("777", tasks=[[7]], name="s3", age_s=800.0, cluster="local")
    for index in (0, 5):
        rows = [
            {"attempt": 1, "step": step, "loss": 5.0 - step / 10, "wall_s": 0.1 * step}
            for step in range(1, 6)
        ]
        sent.metrics(index, [{"attempt": 1, "event": "compile_failed", "reason": "x"}, *rows])
    (sent.run(4).path / "error-0001.txt").write_text("Traceback\nMemoryError: x\n")
    for index in (0, 1):
        step = str(plan.unique_runs[index].spec.steps)
        for name in ("state.json", "weights.safetensors", "optimizer.safetensors"):
            path = sent.run(index).checkpoints / step / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    sent.log("12", "srun: error\nValueError: x\n")
    write_options(folder, {sent.ids[4]: {"attempts_forgiven": 0, "exclude_nodes": ["n9"]}})
    record_cancelled(folder, ["12_3", "99"])
    job = Job(study_folder=str(folder), run_id=sent.ids[4], data_folder=str(folder / "data"))
    write_json_atomic(jobs_file(folder, "s1"), {sent.ids[4]: job.to_json()})
    write_runs(folder / "runs.parquet", collected_rows(folder, plan), plan.study.loss_unit)
    return sent


def _result(sent: Sent, index: int, status: str = "done") -> None:
    run = sent.plan.unique_runs[index]
    done = status == "done"
    loss = (2.2, 2.0, 2.1)[index] if done else None
    values = {
        "schema_version": 1,
        "run_id": run.run_id,
        "attempt": 1,
        "status": status,
        "status_reason": None if done else "loss is not finite",
        "loss": loss,
        "loss_se": 0.005 if done else None,
        "perplexity": 7.4 if done else None,
        "bits_per_byte": 2.9 if done else None,
        "bits_per_byte_se": 0.01 if done else None,
        "reference_perplexity": 7.3 if done else None,
        "wall_s": 1.5,
        "step_s_median": 0.01,
        "tokens_per_s": 12800.0,
        "peak_mem_bytes": 10**8,
        "num_steps": run.spec.steps,
    }
    write_json_atomic(sent.run(index).path / "result.json", values)


def add_code(folder: Path, mark: Path) -> None:
    """Add what would run if it were imported, unpickled or sourced; it makes the file ``mark``."""
    text = f"open({str(mark)!r}, 'w').close()\n"
    for name in (
        "fam/spec.py",
        "fam/module.py",
        "fam/__init__.py",
        "sitecustomize.py",
        "conftest.py",
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    # builtins.open(mark, "w"), as pickle has it.
    pickled = f"cbuiltins\nopen\n(V{mark}\nVw\ntR.".encode()
    for name in ("array-000/12_0_submitted.pkl", "array-000/12_0_0_result.pkl"):
        path = folder / ".launch" / "s1" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickled)


class Damages:
    """Damages a folder, by a seed, and takes it back."""

    def __init__(self, folder: Path, pristine: Path, outside: Path) -> None:
        self._folder = folder
        self._pristine = pristine
        self._outside = outside
        self._files = sorted(p for p in folder.rglob("*") if p.is_file())
        self._folders = sorted(p for p in folder.rglob("*") if p.is_dir())

    @contextlib.contextmanager
    def done(self, seed: int) -> Iterator[str]:
        """Damage one to three places; give what was done."""
        dice = random.Random(seed)
        what: list[str] = []
        with contextlib.ExitStack() as undo:
            seen: set[Path] = set()
            for _ in range(dice.choice((1, 1, 2, 3))):
                what.append(self._one(dice, undo, seen))
            yield "; ".join(what)

    def _one(self, dice: random.Random, undo: contextlib.ExitStack, seen: set[Path]) -> str:
        if dice.random() < 0.1:
            path, how = dice.choice(self._folders), self._replace_folder
        else:
            path = self._file(dice)
            by_kind: list[Callable[..., str]] = [self._bytes, self._replace_file]
            if path.suffix in (".json", ".jsonl"):
                by_kind = [self._value, self._value, self._value, *by_kind]
            how = dice.choice(by_kind)
        if path in seen or not _is_plain(path):
            return f"{path.relative_to(self._folder)}: hidden by another damage"
        seen.add(path)
        undo.callback(put_back, path, self._pristine / path.relative_to(self._folder))
        return f"{path.relative_to(self._folder)}: {how(path, dice)}"

    def _file(self, dice: random.Random) -> Path:
        """Return a file; the few that all verbs read as often as the many others."""
        if dice.random() < 0.3:
            return self._folder / "plan.json"
        return dice.choice(self._files)

    def _bytes(self, path: Path, dice: random.Random) -> str:
        data = bytearray(path.read_bytes())
        kind = dice.choice(("flip", "cut", "empty", "noise", "twice"))
        if kind == "flip" and data:
            for _ in range(dice.choice((1, 1, 3, 30))):
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        elif kind == "cut" and data:
            del data[dice.randrange(len(data)) :]
        elif kind == "noise":
            data = bytearray(dice.randbytes(dice.choice((1, 10, 1000))))
        elif kind == "twice":
            data *= 2
        else:
            data.clear()
        path.write_bytes(data)
        return kind

    def _replace_file(self, path: Path, dice: random.Random) -> str:
        path.unlink()
        kind = dice.choice(
            ("gone", "folder", "link out", "link nowhere", "link to itself", "link in")
        )
        if kind == "folder":
            path.mkdir()
            (path / "inside").write_text("{}")
        elif kind != "gone":
            path.symlink_to(self._target(kind, path, dice, self._files))
        return kind

    def _replace_folder(self, path: Path, dice: random.Random) -> str:
        shutil.rmtree(path)
        kind = dice.choice(
            ("gone", "file", "link out", "link nowhere", "link to itself", "link in")
        )
        if kind == "file":
            path.write_text("{}")
        elif kind != "gone":
            path.symlink_to(self._target(kind, path, dice, self._folders))
        return kind

    def _target(self, kind: str, path: Path, dice: random.Random, inside: list[Path]) -> Path:
        if kind == "link out":
            copy = self._outside / path.name
            return copy if copy.exists() else self._outside
        return {"link nowhere": Path("/nowhere/at/all"), "link to itself": path}.get(
            kind, dice.choice(inside)
        )

    def _value(self, path: Path, dice: random.Random) -> str:
        """Change one value, or one key, of a JSON file."""
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        number = dice.randrange(len(lines))
        values = json.loads(lines[number])
        places = list(_places(values))
        if not places:
            return self._bytes(path, dice)
        holder, key = dice.choice(places)
        what = dice.choice(("set", "set", "set", "remove", "add", "rename"))
        to = self._hostile(dice)
        if what == "set" or (what == "rename" and isinstance(holder, list)):
            holder[key] = to
        elif what == "remove":
            del holder[key]
        elif what == "rename":
            holder[str(to)[:1000]] = holder.pop(key)
        elif isinstance(holder, list):
            holder.insert(key, to)
        else:
            holder[dice.choice(("extra", "exclude_node", "schema_version", "../x"))] = to
        lines[number] = json.dumps(values)
        path.write_text("\n".join(lines), encoding="utf-8")
        return f"{what} {key!r}: {json.dumps(to)[:80]}"

    def _hostile(self, dice: random.Random) -> Any:
        texts = (
            str(self._outside),
            str(self._outside / "victim"),
            str(self._folder / "fam"),
            "../../outside/victim",
            "..",
            ".",
            "/",
            "",
            "~",
            "\x1b]0;owned\x07\x1b[2J",
            "\u202egnp.exe\u2066",
            "two\nlines\r\x9b31m",
            "nul\x00l",
            "$(touch executed)`touch executed`",
            "%s%n{0}{self}[/red]",
            "\ud800",
            "x" * 20000,
            "nan",
            "1e400",
            "0",
            "mlp",
            "done",
        )
        others: tuple[Any, ...] = (
            *(None, True, False, 0, 1, -1, 10**40, 2**63, 1.5, -0.0, 1e308, float("nan")),
            *(float("inf"), [], {}, [[]], {"a": {}}, [None], ["../x"], _deep(60)),
            *([str(self._folder / "fam")], {"paths": [str(self._folder / "fam")]}),
        )
        return dice.choice(texts if dice.random() < 0.5 else others)


def _deep(levels: int) -> Any:
    return [_deep(levels - 1)] if levels else []


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every table and list within a value, with each of its keys."""
    keys = range(len(values)) if isinstance(values, list) else list(values)
    for key in keys if isinstance(values, dict | list) else ():
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _places(values[key])


def _is_plain(path: Path) -> bool:
    """Return whether a path is there as it was made, and no part of it was replaced."""
    try:
        return path.resolve() == path.absolute() and path.exists()
    except (OSError, RuntimeError):
        return False


def put_back(path: Path, pristine: Path) -> None:
    """Replace a file or folder, or what stands there now, by the pristine one."""
    remove(path)
    if pristine.is_dir():
        shutil.copytree(pristine, path, symlinks=True)
    else:
        shutil.copy2(pristine, path)


def remove(path: Path) -> None:
    """Remove what stands at a path, if anything does; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
