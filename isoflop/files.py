"""Crash-safe files: write to a temporary name, fsync, rename; a reader never sees half a file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from isoflop.disk import naming
from isoflop.errors import UserError, shown

_T = TypeVar("_T")

_NUM_WRITERS = 8
_CONTAINERS = (dict, list)
_MAX_DEPTH = 50


def fsync_path(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(path: Path, data: bytes, *, make_folder: bool) -> Path:
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # The error before is the one to be told.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_bytes_atomic(path: Path, data: bytes, *, make_folder: bool = True) -> None:
    """Replace ``path`` by ``data``: after a crash the old or the new content is there, whole.

    Args:
        path: the file.
        data: its new content.
        make_folder: False: raise FileNotFoundError where its folder is not there, since it was
            before and may have been moved.
    """
    with naming(path):
        temporary = _write_temporary(path, data, make_folder=make_folder)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


def write_text_atomic(path: Path, text: str, *, make_folder: bool = True) -> None:
    """Write UTF-8 text as :func:`write_bytes_atomic` does."""
    write_bytes_atomic(path, text.encode(), make_folder=make_folder)


def dump_json(value: Any) -> str:
    """Return indented JSON with a final newline; NaN and infinities are refused (JSON has none)."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json_atomic(path: Path, value: Any, *, make_folder: bool = True) -> None:
    """Write a JSON value as :func:`write_bytes_atomic` does."""
    write_text_atomic(path, dump_json(value), make_folder=make_folder)


def write_once(path: Path, data: bytes, *, make_folder: bool = True) -> bool:
    """Create ``path`` with ``data`` unless it exists; the first writer wins.

    Returns False, and changes nothing, if the file is already there.
    """
    if path.exists():
        return False
    with naming(path):
        temporary = _write_temporary(path, data, make_folder=make_folder)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        fsync_path(path.parent)
    return True


def write_many(write: Callable[[_T], object], items: Iterable[_T]) -> None:
    """Write files of ``items``, several at a time: nearly all of it is waiting for the disk."""
    # Imported here: few commands write many files.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_NUM_WRITERS) as pool:
        # The results are asked for, so that the first error is raised.
        for _ in pool.map(write, items):
            pass


def refuse_links(path: Path, depth: int = 0) -> None:
    """Refuse a symbolic link in the place of a study's file or folder: it may lead out of there.

    Args:
        path: below the study's folder; it need not be there.
        depth: levels of what lies in it that are looked at, too.

    Raises:
        UserError: a link.
    """
    if path.is_symlink():
        allowed = "of the study itself (no link but the study's own folder is followed)"
        raise UserError(str(path), shown("a symbolic link"), allowed, "remove the link")
    if depth == 0:
        return
    # What another process removes meanwhile is no link.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        inner = [
            entry.path
            for entry in entries
            if entry.is_symlink() or (depth > 1 and entry.is_dir(follow_symlinks=False))
        ]
        for name in sorted(inner):
            refuse_links(Path(name), depth - 1)


def make_own_folder(path: Path) -> None:
    """Make a folder in a study's, unless it is there.

    Raises:
        UserError: there is a link in its place.
    """
    refuse_links(path)
    path.mkdir(parents=True, exist_ok=True)


def read_json(path: Path, what: str) -> Any:
    """Return the JSON value in ``path``; ``what`` names the file's role in the error.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        text = read_regular(path).decode("utf-8")
    except FileNotFoundError:
        raise UserError(what, str(path), "an existing file", "check the path") from None
    except (UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
        raise UserError(what, str(path), f"readable JSON ({error})", "restore the file") from None
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        _check_depth(value)
    # Also of a whole number of thousands of digits, which Python does not read.
    except (ValueError, RecursionError) as error:
        raise UserError(
            what, str(path), f"valid JSON ({error})", "restore the file or make it again"
        ) from None
    return value


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read its bytes; a pipe or device, which may never end, is refused."""

    def opener(name: str, flags: int) -> int:
        # Else the opening of a pipe waits for its writer.
        return os.open(name, flags | os.O_NONBLOCK)

    file = open(path, "rb", opener=opener)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise PermissionError(errno.EPERM, "Not a regular file", str(path))
    return file


def read_regular(path: Path) -> bytes:
    """Return the bytes of a file that :func:`open_regular` opens."""
    with open_regular(path) as file, naming(path):
        return file.read()


def is_plain_file(path: Path) -> bool:
    """Return whether there is a file and not a link in its place, which may lead to any file."""
    return path.is_file() and not path.is_symlink()


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is out of range")
    return number


def _check_depth(value: Any) -> None:
    """Refuse what no file of ours has, and what no function that calls itself would come out of."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner = (v.values() if isinstance(v, dict) else v for v in level if type(v) in _CONTAINERS)
        level = [v for values in inner for v in values if type(v) in _CONTAINERS]
        if not level:
            return
    raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")


def cache_folder() -> Path:
    """Return the folder of what can be made again: ``isoflop`` in the XDG cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "isoflop"


def from_here(path: Path) -> Path:
    """Return an absolute path as it is typed from here: relative where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def sha256_file(path: Path) -> str:
    """Return hex sha256 of a file's bytes."""
    with naming(path), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces; only str, int, bool, None, list and dict.

    A float has no one spelling and an unknown object no meaning, so both raise.

    Raises:
        TypeError: any other type, at any depth.
    """
    _check_canonical(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _check_canonical(value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if type(key) is not str:
                raise TypeError(f"key {key!r} has no canonical form")
            _check_canonical(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_canonical(inner)
    elif value is not None and type(value) not in (str, int, bool):
        raise TypeError(f"{type(value).__name__} {value!r} has no canonical form")


def sha256_json(value: Any) -> str:
    """Return hex sha256 of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()
