"""File systems that cannot be written or read: full, over quota, read-only, stale, failing.

An error of theirs is told by its number (errno), wherever it stands among an exception's causes;
in what a job printed, by the system's own words. A run that failed by one records a reason that
begins with :data:`RECORDED`, from which every reader knows it again.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import failure_reason

UNWRITABLE = 3
"""Exit code of a verb that met such a file system."""

RECORDED = "disk: "
"""How the reason of a run begins that failed by its file system."""

_AGAIN = "then type the same command again"
_WHAT_TO_DO = {
    errno.ENOSPC: f"free some space, {_AGAIN}",
    errno.EDQUOT: f"free some space or ask for a larger quota, {_AGAIN}",
    errno.EROFS: f"have it mounted for writing, or use another folder, {_AGAIN}",
    errno.ESTALE: f"have the file system mounted anew, {_AGAIN}",
    errno.EIO: f"have the disk or its server looked at, {_AGAIN}",
}
_WORDS = {os.strerror(number): number for number in _WHAT_TO_DO} | {
    # Of older C libraries.
    "Stale NFS file handle": errno.ESTALE
}
SYSTEM_WORDS = re.compile("|".join(map(re.escape, _WORDS)))
"""What the system calls these errors, in any text."""

# Too little for the checkpoint of any run.
_LITTLE_BYTES = 2**18

# Libraries that raise errors of their own types, or without a number, and how they write it.
_LIBRARIES = frozenset(("safetensors", "pyarrow", "tokenizers"))
_NUMBER_IN_TEXT = re.compile(r"\((?:os error|errno) (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)

# Mistakes in a path that was given, or in who may use it.
_MISTAKES = frozenset(
    (
        *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
        *(errno.ENAMETOOLONG, errno.ELOOP),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskFault:
    """An error of a file system."""

    number: int
    """Its errno."""
    path: str | None
    """What could not be written or read; None: the error does not say."""

    @property
    def line(self) -> str:
        """What could not be done, how much is free, and what to do; for people."""
        verb = "write" if self.number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else "use"
        what = self.path or "standard output or a temporary file"
        space = None if self.path is None else space_at(Path(self.path))
        parts = [f"cannot {verb} {what}: {os.strerror(self.number)}", space]
        parts += ["what was there before is whole", _WHAT_TO_DO[self.number]]
        return "; ".join(part for part in parts if part)


def fault_of(error: BaseException) -> DiskFault | None:
    """Return the file system's error that an exception is or comes from; None: there is none."""
    found: DiskFault | None = None
    for cause in _causes(error):
        number = _number(cause)
        if number in _WHAT_TO_DO:
            path = getattr(cause, "filename", None)
            if found is None or found.path is None:
                found = DiskFault(number=number, path=None if path is None else os.fsdecode(path))
    return found


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        yield inner
        hidden = inner.__suppress_context__
        inner = inner.__cause__ or (None if hidden else inner.__context__)


def _number(error: BaseException) -> int:
    """Return an exception's errno; 0: it has none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    of_library = type(error).__module__.partition(".")[0] in _LIBRARIES
    if not of_library and not isinstance(error, OSError):
        return 0
    text = str(error)
    if (number := _NUMBER_IN_TEXT.search(text)) is not None:
        return int(number[1] or number[2])
    words = SYSTEM_WORDS.search(text)
    return 0 if words is None else _WORDS[words[0]]


def reason_of(error: BaseException) -> str:
    """Return an exception in one line, marked by :data:`RECORDED` where it is a file system's."""
    reason = failure_reason(error)
    return reason if fault_of(error) is None else f"{RECORDED}{reason}"


def is_recorded(reason: str | None) -> bool:
    """Return whether a run's reason is that of :func:`reason_of` for a file system's error."""
    return reason is not None and _RECORDED_BY_RANKS.match(reason) is not None


# Of a run with several ranks, each that failed says why.
_RECORDED_BY_RANKS = re.compile(rf"(?:rank \d+: )?{RECORDED}|rank \d+: .*?; rank \d+: {RECORDED}")


def line_of_reason(reason: str, folder: Path) -> str:
    """Return a line for people about a run that failed by its file system.

    Args:
        reason: as :func:`reason_of` gave it.
        folder: that the run writes in.
    """
    words = SYSTEM_WORDS.search(reason)
    todo = _WHAT_TO_DO[errno.EIO if words is None else _WORDS[words[0]]]
    return f"{reason.replace(RECORDED, '', 1)}; {space_at(folder) or 'space unknown'}; {todo}"


def mistake_of(error: BaseException) -> str | None:
    """Return a line about a path that was given wrongly, or may not be used; None: it is another.

    For errors that nothing else explained.
    """
    if not isinstance(error, OSError) or error.filename is None or error.errno not in _MISTAKES:
        return None
    path = os.fsdecode(error.filename)
    return f"{path}: {os.strerror(error.errno)}; name another path, or change who may use it"


def space_at(path: Path) -> str | None:
    """Return how much is free on the file system of a path that need not exist; None: unknown."""
    try:
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        found = os.statvfs(there)
    except OSError:
        return None
    if found.f_files and not found.f_favail:
        return "it can hold no more files"
    free, total = (_bytes(n * found.f_frsize) for n in (found.f_bavail, found.f_blocks))
    return f"{free} of {total} free"


def shortage_at(path: Path) -> str | None:
    """Return why runs can write nothing to a folder now; None: they can, as far as can be seen."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        return os.strerror(error.errno) if error.errno in _WHAT_TO_DO else None
    if found.f_flag & os.ST_RDONLY:
        return os.strerror(errno.EROFS)
    return space_at(path) if found.f_bavail * found.f_frsize < _LITTLE_BYTES else None


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in a file system's error, which reading or writing an open file leaves out."""
    try:
        yield
    except OSError as error:
        if error.errno not in _WHAT_TO_DO:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
