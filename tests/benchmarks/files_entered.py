"""How many functions and files of the package a verb enters: what its reader has to open.

Calls are counted with `sys.setprofile`, each verb in a process of its own; the bodies of modules
and classes, which run on import, are no calls. `--files` names the files.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import multiprocessing
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import isoflop
from isoflop.cli import main as command_line

RESULTS = Path(__file__).resolve().parents[2] / "results"
PACKAGE = Path(isoflop.__file__).parent
LIMITS = {"plan": 40, "fit": 65}


def entered(arguments: Sequence[str]) -> set[tuple[str, int, str]]:
    """Return (file, line, name) of every function of the package that a command line calls."""
    calls: set[tuple[str, int, str]] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        is_function = event == "call" and code.co_flags & inspect.CO_OPTIMIZED
        if is_function and Path(code.co_filename).is_relative_to(PACKAGE):
            calls.add((code.co_filename, code.co_firstlineno, code.co_name))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            command_line(list(arguments), standalone_mode=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copytree(RESULTS / "quickstart", folder / "quickstart")
        verbs = {
            "plan": ["plan", "--budgets", "1e17,1e18", "--out", str(folder / "paper")],
            "fit": ["fit", str(folder / "quickstart")],
        }
        print(f"{'verb':6s} {'functions':>9s} {'files':>6s} {'limit':>6s}")
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for verb, arguments in verbs.items():
                calls = pool.apply(entered, (arguments,))
                files = sorted({Path(file).relative_to(PACKAGE).as_posix() for file, _, _ in calls})
                print(f"{verb:6s} {len(calls):9d} {len(files):6d} {LIMITS[verb]:6d}")
                if "--files" in sys.argv:
                    print(*(f"    {file}" for file in files), sep="\n")


if __name__ == "__main__":
    main()
