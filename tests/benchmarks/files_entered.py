"""How many functions and files of the package a verb enters: what its reader has to open.

Calls are counted with `sys.setprofile`; the bodies of modules and classes, which run on import,
are not calls.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from isoflop.cli import main as isoflop

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "isoflop"
LIMITS = {"plan": 40, "fit": 65}


def entered(arguments: Sequence[str]) -> set[tuple[str, int, str]]:
    """Return (file, line, name) of every function of the package that a command line calls."""
    calls: set[tuple[str, int, str]] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # CO_NEWLOCALS and CO_OPTIMIZED are set for functions, not for modules and classes.
        if event == "call" and code.co_flags & 1 and code.co_filename.startswith(str(PACKAGE)):
            calls.add((code.co_filename, code.co_firstlineno, code.co_name))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(click.exceptions.Exit):
            isoflop(list(arguments), standalone_mode=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copytree(REPOSITORY / "results" / "quickstart", folder / "quickstart")
        verbs = {
            "plan": ["plan", "--budgets", "1e17,1e18", "--out", str(folder / "paper")],
            "fit": ["fit", str(folder / "quickstart")],
        }
        print(f"{'verb':6s} {'functions':>9s} {'files':>6s} {'limit':>6s}")
        for verb, arguments in verbs.items():
            calls = entered(arguments)
            files = sorted({Path(file).relative_to(PACKAGE).as_posix() for file, _, _ in calls})
            print(f"{verb:6s} {len(calls):9d} {len(files):6d} {LIMITS[verb]:6d}")
            if "--files" in sys.argv:
                print(*(f"    {file}" for file in files), sep="\n")


if __name__ == "__main__":
    main()
