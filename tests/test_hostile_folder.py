"""A study's folder from somebody else, damaged in every way: nothing of it harms who looks at it.

Each damaged copy goes through most verbs, in this process; some take turns, and `fit` or `report`
has every twentieth. No process is started: a scheduler answers from here. Figures, which would take
nearly all of the time, are not drawn; what they draw is of the tables that are written.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from analysis.made_report import draw_nothing
from isoflop.cli import main, prompts
from isoflop.families import PATHS_VARIABLE
from isoflop.launch.slurm import snapshot
from made_hostile import Damages, add_code, make_study, put_back
from slurm.made_scheduler import line

PROFILE = 'name = "mine"\nhardware = "cpu2"\n'
# All control characters but line ends and tabs, and what turns the direction of text.
CONTROL = {*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {9, 10}
# What `fit` and `report` write into a study's folder.
OWN = {
    *("runs.parquet", "optima.parquet", "fits.parquet", "compare.parquet", "exponents.parquet"),
    *("validity.parquet", "excluded.parquet", "hypotheses.parquet", "seed_means.parquet"),
    *("report.md", "report.html", "report.tex", "plots"),
}
WRITERS = ("fit", "report")
"""Verbs that write; the others only look. They come last, one at a time."""
EVERY = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hostile:
    """A folder to damage, and all around it that must stay as it is."""

    top: Path
    folder: Path
    damages: Damages
    run: str
    """Digits of a run."""

    @property
    def out(self) -> Path:
        """Where results may go."""
        return self.top / "out"

    def verbs(self, seed: int) -> dict[str, list[str]]:
        """Return the arguments of what a damaged copy goes through."""
        study, few = str(self.folder), ["--n-boot", "0"]
        chosen = {
            "status": [study],
            "show": [study],
            "cancel": [study],
        }
        sends = {
            "submit": [study, "--cluster", str(self.top / "mine.toml"), "--dry-run"],
            "retry": [study, "--failed", "all", "--dry-run"],
        }
        more = {
            "status": [study, "--json"],
            "show": [study, self.run],
            "logs": [study, self.run],
            "clean": [study, "--dry-run"],
            "diff": [study, str(self.top / "pristine")],
            "refine": [study],
            "retry": [study, "--failed", "oom"],
        }
        against = [study, str(self.top / "pristine"), "--undecided-is", "pass"]
        rare = {
            "fit": [study, *few],
            "gate": against,
            "report": [study, "--out", str(self.out), *few],
        }
        for turn, table in ((seed, sends), (seed // 2, more)):
            name = list(table)[turn % len(table)]
            chosen[f"{name} in turn"] = table[name]
        if seed % EVERY == 0:
            name = list(rare)[seed // EVERY % len(rare)]
            chosen[name] = rare[name]
        return chosen

    def reset(self) -> None:
        """Put back what `fit` wrote into the study."""
        shutil.rmtree(self.out, ignore_errors=True)
        for name in OWN - {"plots"}:
            if (self.top / "pristine" / name).exists():
                put_back(self.folder / name, self.top / "pristine" / name)
            else:
                (self.folder / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    top = tmp_path_factory.mktemp("hostile").resolve()
    folder, outside = top / "study", top / "outside"
    sent = make_study(folder)
    add_code(folder, top / "executed")
    outside.mkdir()
    for path in folder.rglob("*"):
        # Under the names that are looked up through links, all is there to be read or removed.
        if not (outside / path.name).exists():
            put_back(outside / path.name, path)
    put_back(outside / "victim", sent.run(0).checkpoints)
    shutil.copytree(folder, top / "pristine", symlinks=True)
    (top / "mine.toml").write_text(PROFILE)
    (top / "cwd").mkdir()
    queue = [
        line("12_4", "FAILED", status=256, comment=sent.comment()),
        line("12_5", "RUNNING", node="n1", comment=sent.comment()),
        line("12_6", "NODE_FAIL", node="n2", comment=sent.comment()),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PATHS_VARIABLE, "")
        patch.chdir(top / "cwd")
        _start_nothing(patch, queue)
        draw_nothing(patch)
        # Asked at a terminal, the answer is no.
        at_terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True), exit=sys.exit)
        patch.setattr(prompts, "sys", at_terminal)
        damages = Damages(folder, top / "pristine", outside)
        yield Hostile(top=top, folder=folder, damages=damages, run=sent.ids[4][:12])


def _start_nothing(patch: pytest.MonkeyPatch, queue: Sequence[str]) -> None:
    """Answer what a scheduler is asked; refuse to start any other process."""

    def run(arguments: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        # A report asks which commit of isoflop this is.
        answers = {"squeue": "\n".join(queue), "scontrol show": "MaxArraySize = 1001", "git": "c"}
        asked = " ".join(arguments[:2]) if arguments[0] == "scontrol" else arguments[0]
        return subprocess.CompletedProcess(arguments, 0, answers[asked], "")

    def refuse(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    patch.setattr(subprocess, "run", run)
    patch.setattr(subprocess, "Popen", refuse)
    for name in ("system", "posix_spawn", "fork"):
        patch.setattr(os, name, refuse)
    # The same installed packages each time, which take long to read.
    patch.setattr(snapshot, "_digest", lambda roots: "0" * 64)


def complaint(done: Result) -> str | None:
    """Return what is wrong with how a verb ended."""
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        assert done.exc_info is not None
        return "".join(traceback.format_exception(*done.exc_info)[-6:])
    if done.exit_code not in (0, 1, 2, 3):
        return f"exit code {done.exit_code}"
    said = done.stderr.splitlines()
    mistakes = [text for text in said if text.startswith("isoflop: ")]
    # Records that cannot be read have a line each before a verb goes on.
    known = [text for text in said if text.startswith("damaged: ")]
    if done.exit_code == 2 and (not mistakes or len(mistakes) + len(known) != len(said)):
        return f"not a line each: {done.stderr!r}"
    if not CONTROL.isdisjoint(map(ord, done.output)):
        return f"control characters: {done.output!r}"
    return None


def stamps(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return when each file, folder and link below a folder was last changed in any way.

    The time of the last change of status is set by every write, and cannot be set back.
    """
    found, todo = {}, [str(folder)]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                about = entry.stat(follow_symlinks=False)
                name = entry.path.removeprefix(f"{folder}/")
                found[name] = (about.st_ino, about.st_mode, about.st_mtime_ns, about.st_ctime_ns)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
    return found


def trespass(before: dict[str, Any], after: dict[str, Any], verb: str) -> str | None:
    """Return what was touched that was not to be, by a verb or by looking."""
    touched = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    if verb == "fit":
        touched -= {"study", *(f"study/{name}" for name in OWN)}
    if verb == "report":
        touched = {path for path in touched if path.partition("/")[0] != "out"}
    return f"touched: {sorted(touched)}" if touched else None


def go_through(hostile: Hostile, seed: int) -> list[str]:
    """Damage the folder by a seed; return all that went wrong, with the damage.

    Verbs that only look are followed by one look at all files: what a write does to a time cannot
    be undone by the next verb.
    """
    found: list[tuple[str, str | None]] = []
    verbs = list(hostile.verbs(seed).items())
    with hostile.damages.done(seed) as damage:
        before = stamps(hostile.top)
        for writes, group in itertools.groupby(verbs, key=lambda verb: verb[0] in WRITERS):
            said = [(name, _ended(name, arguments)) for name, arguments in group]
            last = said[-1][0] if writes else "looking"
            after = stamps(hostile.top)
            found += [*said, (last, trespass(before, after, last))]
            before = after
            if writes:
                hostile.reset()
    return [f"seed {seed} ({damage}), {verb}: {problem}" for verb, problem in found if problem]


def _ended(name: str, arguments: list[str]) -> str | None:
    verb = name.partition(" ")[0]
    return complaint(CliRunner().invoke(main, [verb, *arguments], input="n\n"))


def check(hostile: Hostile, seeds: range) -> None:
    problems = [problem for seed in seeds for problem in go_through(hostile, seed)]
    assert not problems, "\n".join([f"{len(problems)} problems", *problems[:20]])


def test_undamaged_every_verb_works(hostile: Hostile) -> None:
    for seed in (*range(14), EVERY, 2 * EVERY):
        for name, arguments in hostile.verbs(seed).items():
            done = CliRunner().invoke(main, [name.partition(" ")[0], *arguments], input="n\n")
            assert done.exit_code == 0, (name, done.output, done.exception)
        hostile.reset()


def test_a_damaged_folder_harms_nobody(hostile: Hostile) -> None:
    check(hostile, range(30))


# In parts, which several workers can take.
@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 2000, 500))
def test_two_thousand_damaged_folders_harm_nobody(hostile: Hostile, first: int) -> None:
    check(hostile, range(first, first + 500))
