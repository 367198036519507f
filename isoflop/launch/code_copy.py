"""Copies of code in a study's folder: made whole or not at all, and read-only.

.launch/code/DIGEST/            isoflop itself, with packages that jobs need (slurm/snapshot.py)
.launch/code/trainer-DIGEST/    the code of a trainer of one's own (trainer_code.py)
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from isoflop.disk import naming

CODE_FOLDER = "code"
SHOWN_DIGITS = 16
"""Of a digest, in the name of a copy."""

_READ_ONLY = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
# Where Python keeps bytecode; files of other names there are being written.
_COMPILED = "__pycache__"


def make_copy(folder: Path, temporary: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder of what ``fill`` writes to a temporary one beside it, which is then renamed.

    Another process that makes the same one may be faster.
    """
    try:
        with naming(folder):
            fill(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary)
        if not folder.is_dir():
            raise


def copy_file(path: Path, target: Path, *, is_executable: bool = False) -> None:
    """Copy the content of a file; nobody is to write to the copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    target.chmod(_READ_ONLY | (_EXECUTABLE if is_executable else 0))


def remove_compiled(root: Path) -> None:
    """Remove bytecode, which Python would run in the place of the sources that are checked.

    Tasks that start meanwhile write there, and rename what they wrote.
    """
    for folder in list(root.rglob(_COMPILED)):
        if folder.is_symlink():
            folder.unlink()
            continue
        for path in list(folder.glob("*.pyc")):
            path.unlink(missing_ok=True)
