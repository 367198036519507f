"""A copy of the repository in which a document's code runs as it would for a reader."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from docs.documents import REPOSITORY
from docs.shell import script

# Stops at the first command that fails and names its line in the document.
_BASH = 'trap \'echo "$1:$LINENO: $BASH_COMMAND" >&2\' ERR; source "$0"'


def copy_repository(folder: Path) -> Path:
    """The working tree as git knows it, committed results and new files included."""
    copy = folder / "isoflop"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, copy / name)
    (copy / ".venv").symlink_to(sys.prefix)
    return copy


def run_document(
    document: Path, copy: Path, left_out: Collection[str], smaller: Mapping[str, str]
) -> None:
    """Runs a document's commands and Python in order, in one shell, at the root of a copy.

    What they write below /tmp lies in a folder of its own there: sockets need short paths.
    """
    code = script(document, left_out)
    for text, other in smaller.items():
        assert code.count(text) == 1, text
        code = code.replace(text, other)
    temporary = Path(tempfile.mkdtemp(prefix="isoflop-", dir="/tmp"))
    file = copy.parent / "commands.sh"
    file.write_text(code.replace("/tmp/", f"{temporary}/"))
    done = subprocess.run(
        ["bash", "-eE", "-c", _BASH, str(file), document.name],
        cwd=copy,
        env=_environment(copy),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    shutil.rmtree(temporary)


def _environment(copy: Path) -> dict[str, str]:
    tools = copy.parent / "bin"
    tools.mkdir()
    if os.geteuid() == 0 and shutil.which("sudo") is None:
        (tools / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
        (tools / "sudo").chmod(0o755)
    path = (str(tools), str(Path(sys.prefix) / "bin"), os.environ["PATH"])
    return os.environ | {
        "PATH": os.pathsep.join(path),
        # The copy's code, not that of the repository that is installed as editable.
        "PYTHONPATH": os.pathsep.join((str(copy), str(copy / "kernels"))),
        "ISOFLOP_DATA_DIR": str(copy.parent / "data"),
        "COLUMNS": "80",
        # A cluster that a document brings up goes down with the tests.
        "UNTIL_PID": str(os.getpid()),
    }
