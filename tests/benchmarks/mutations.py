"""Makes the package wrong in one place at a time, and shows which tests notice.

    python tests/benchmarks/mutations.py run COMMIT LOG     appends a line to LOG for each mutation
    python tests/benchmarks/mutations.py tables LOG...      the share caught by area, a column a LOG

A mutation of mutations.toml is caught by `make test` where a test of its area fails that is not
marked slow, by `make test-slow` where a slow one does. Each is made in a scratch worktree of
COMMIT; a run that was stopped goes on where LOG ends. A test that fails without the mutation too
catches nothing.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
# An endless loop is noticed, too.
TIMEOUT = "--timeout=300"
# They open pages in a browser, which a machine may lack.
NOT_RUN = "--ignore-glob=*/test_page.py"
OPTIONS = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--no-header", "--tb=no", "-rfE"]


# Once, for all that is forked: not the package itself.
SLOW_TO_IMPORT = ("pyarrow.parquet", "scipy.optimize", "torch", "torch.distributed.fsdp")

STAGES = ("likely", "all fast", "slow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    """One place made wrong."""

    id: str
    area: str
    before: tuple[str, ...]
    after: tuple[str, ...]


def main(arguments: Sequence[str]) -> None:
    if arguments[0] == "tables":
        print_tables([Path(name) for name in arguments[1:]])
    else:
        run(arguments[1], Path(arguments[2]))


def read_mutations() -> tuple[list[Mutation], dict[str, dict[str, Any]]]:
    """Return the mutations, one of each area in turn, and the areas' names and tests."""
    table = tomllib.loads((HERE / "mutations.toml").read_text())
    mutations = []
    for entry in table["mutation"]:
        before, after = (
            (value,) if isinstance(value, str) else tuple(value)
            for value in (entry["before"], entry["after"])
        )
        area = entry["id"].partition("/")[0]
        mutations.append(Mutation(id=entry["id"], area=area, before=before, after=after))
    seen: Counter[str] = Counter()
    turn = {}
    for mutation in mutations:
        turn[mutation.id] = seen[mutation.area]
        seen[mutation.area] += 1
    return sorted(mutations, key=lambda m: turn[m.id]), table["area"]


def run(commit: str, log: Path) -> None:
    """Append what the log lacks: the likely tests of every mutation first, then the survivors'."""
    mutations, areas = read_mutations()
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--detach", str(tree), commit], check=True)
        try:
            for name in SLOW_TO_IMPORT:
                importlib.import_module(name)
            runner = Runner(tree)
            places = {mutation.id: runner.place(mutation) for mutation in mutations}
            for stage, mutation in itertools.product(STAGES, mutations):
                rows = [row for row in read_log(log) if row["id"] == mutation.id]
                if not any(row["caught"] or row["stage"] == stage for row in rows):
                    row = runner.outcome(stage, mutation, places, areas[mutation.area])
                    with log.open("a") as file:
                        print(json.dumps(row), file=file)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def read_log(log: Path) -> list[dict[str, Any]]:
    """Return the outcomes so far."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


class Runner:
    """Runs tests in a scratch worktree."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._written_s = int(time.time())
        # Whether a test passes without any mutation, by its id.
        self._passes: dict[str, bool] = {}

    def place(self, mutation: Mutation) -> tuple[Path, str, str]:
        """Return the one file that has the text, and which text becomes which."""
        found = [
            (path, before, after)
            for path in sorted(self._tree.glob("isoflop/**/*.py"))
            for before, after in zip(mutation.before, mutation.after, strict=True)
            if before in path.read_text()
        ]
        if len(found) != 1 or found[0][0].read_text().count(found[0][1]) != 1:
            files = ", ".join(str(path.relative_to(self._tree)) for path, *_ in found)
            sys.exit(f"{mutation.id}: stands not once but in: {files or 'no file'}")
        return found[0]

    def outcome(
        self,
        stage: str,
        mutation: Mutation,
        places: Mapping[str, tuple[Path, str, str]],
        tests: Mapping[str, Sequence[str]],
    ) -> dict[str, Any]:
        """Return which test of a stage catches a mutation, if any."""
        begin_s = time.time()
        path, before, after = places[mutation.id]
        text, marks = path.read_text(), "slow" if stage == "slow" else "not slow"
        self._write(path, text.replace(before, after))
        try:
            test = self._first_failure(self._tests(stage, tests), marks, path, text)
        finally:
            self._write(path, text)
        row: dict[str, Any] = {"id": mutation.id, "stage": stage}
        row |= {"caught": None} if test is None else {"caught": marks, "test": test}
        print(f"{time.time() - begin_s:.0f} s: {row}", file=sys.stderr, flush=True)
        return row

    def _tests(self, stage: str, tests: Mapping[str, Sequence[str]]) -> list[str]:
        if stage == "all fast":
            return [f"tests/{folder}" for folder in tests["folders"]]
        names = [*tests["first"], *(tests["slow"] if stage == "slow" else ())]
        found = (sorted(self._tree.glob(f"tests/**/{name}.py")) for name in names)
        return [str(path.relative_to(self._tree)) for path in itertools.chain(*found)]

    def _first_failure(self, places: list[str], marks: str, path: Path, text: str) -> str | None:
        """Return the first test that fails with the mutation and passes without it."""
        while (test := self._run(places, marks)) is not None:
            if test not in self._passes and "::" in test:
                mutated = path.read_text()
                self._write(path, text)
                self._passes[test] = self._run([test], "") is None
                self._write(path, mutated)
            if self._passes.get(test, True):
                return test
        return None

    def _run(self, places: list[str], marks: str) -> str | None:
        """Return the id of the first test that fails, None where all pass."""
        known = [f"--deselect={test}" for test, passes in self._passes.items() if not passes]
        options = [*OPTIONS, TIMEOUT, NOT_RUN, "-m", marks, *known, *places]
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                self._be_pytest(options, output.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            lines = output.read().splitlines()
        # 5: no test has these marks.
        if code in (0, 5):
            return None
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        if not failed:
            sys.exit("\n".join([f"pytest ended with code {code}:", *lines[-20:]]))
        return failed[-1].split(" - ")[0].split(" ", 1)[1]

    def _be_pytest(self, options: Sequence[str], output: int) -> NoReturn:
        """Run pytest in this process, a fork that has imported what is slow to import."""
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(self._tree)
        paths = [str(self._tree), str(self._tree / "kernels")]
        sys.path[:0] = paths
        os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        code = 1
        try:
            code = int(pytest.main([*options]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _write(self, path: Path, text: str) -> None:
        """Write a source with a time of its own, by which Python knows its compiled form."""
        path.write_text(text)
        self._written_s += 2
        os.utime(path, (self._written_s, self._written_s))


def print_tables(logs: Sequence[Path]) -> None:
    """Print how many are caught by both targets, then by `make test` alone, as Markdown.

    Mutations that a log has not done with are left out.
    """
    mutations, areas = read_mutations()
    rows = [
        {
            row["id"]: row["caught"]
            for row in read_log(log)
            if row["caught"] or row["stage"] == STAGES[-1]
        }
        for log in logs
    ]
    titles = {"both targets": ("not slow", "slow"), "`make test` alone": ("not slow",)}
    for title, kinds in titles.items():
        print(f"\n| caught by {title} | places | {' | '.join(log.stem for log in logs)} |")
        print("|---|---|" + "---|" * len(logs))
        for area in [*areas, None]:
            ids = [m.id for m in mutations if area in (m.area, None)]
            ids = [i for i in ids if all(i in caught for caught in rows)]
            counts = [sum(caught[i] in kinds for i in ids) for caught in rows]
            name = "all" if area is None else areas[area]["name"]
            print(f"| {name} | {len(ids)} | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    main(sys.argv[1:])
