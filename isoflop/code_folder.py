"""The code of a trainer of one's own: digests of its files, what changed in it, its record.

    STUDY/code.json     files with their digests, and the commit, as planned

A symbolic link to a code file counts as a file of its content. One to anything else counts by where
it leads, as a path from the link. Neither times, owners, the order of files nor the folder's own
path matter; the executable bit of a file does, and so do its line ends.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from isoflop.code_files import CODE_FILE, LIST_IT, commit_of, link_text, list_code
from isoflop.errors import UserError, shown
from isoflop.files import refuse_links, sha256_file, sha256_json, write_json_atomic
from isoflop.texts import has_control
from isoflop.validate import CLOSED, Digest, Pattern, read_record, wrong_in_file

CODE_SCHEMA_VERSION = 1
MAX_FILE_BYTES = 10_000_000
MAX_BYTES = 200_000_000

_EXECUTABLE = "x:"
_LINK = "link:"
_Mark = Annotated[str, Pattern(regex=f"^({_EXECUTABLE}|{_LINK})?[0-9a-f]{{64}}$")]
_NUM_NAMED = 3
_DO_RECORD = "restore the file"


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """The files of a trainer's code."""

    files: Mapping[str, str]
    """By path below the folder: sha256 of the content, after `x:` that of an executable file, after
    `link:` that of where a link leads."""
    commit: str | None
    """For people, "-dirty" appended if files were changed since; None: no git. It is not in the
    digest."""

    @property
    def digest(self) -> str:
        """Sha256 over the paths and digests of all files."""
        return sha256_json(dict(self.files))


def code_of(folder: Path, patterns: Sequence[str] = ()) -> Code:
    """Return the code in a folder as it is now.

    Args:
        folder: the trainer's.
        patterns: which files are code, however large they are; see
            :func:`isoflop.code_files.list_code`. None: all that may be.

    Raises:
        UserError: as `list_code`; a file that cannot be read, or so large that it is data; no code.
    """
    names = list_code(folder, patterns)
    if not patterns:
        _refuse_data(folder, names)
    files = marks_of(folder, names)
    if not files:
        raise UserError("trainer.code", str(folder), "a folder with code", "correct the path")
    return Code(files=files, commit=commit_of(folder))


def marks_of(folder: Path, names: Collection[str]) -> dict[str, str]:
    """Return how files count, as in :attr:`Code.files`, without those that are gone or no code.

    Raises:
        UserError: one cannot be read.
    """
    marks = ((name, _mark(folder, name, names)) for name in sorted(names))
    return {name: mark for name, mark in marks if mark is not None}


def _mark(folder: Path, name: str, names: Collection[str]) -> str | None:
    path = folder / name
    try:
        if path.is_symlink():
            text = link_text(folder, name)
            if text is None:
                return None
            target = os.path.normpath(f"{name}/../{text}")
            if target not in names or (folder / target).is_symlink():
                return _LINK + sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
            path = folder / target
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return None
        return (_EXECUTABLE if mode & stat.S_IXUSR else "") + sha256_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        allowed = f"a file that can be read ({error.strerror})"
        raise UserError("trainer.code", str(path), allowed, LIST_IT) from None


def is_link(mark: str) -> bool:
    """Return whether a file counts by where it leads."""
    return mark.startswith(_LINK)


def is_executable(mark: str) -> bool:
    """Return whether a file may be executed."""
    return mark.startswith(_EXECUTABLE)


def _refuse_data(folder: Path, names: Collection[str]) -> None:
    """Refuse so large a file, or so much in all, that it is data."""
    sizes = {}
    for name in sorted(names):
        path = folder / name
        if path.is_file() and not path.is_symlink():
            sizes[name] = path.stat().st_size
    total = sum(sizes.values())
    largest = max(sizes, key=lambda name: sizes[name], default="")
    if total > MAX_BYTES or sizes.get(largest, 0) > MAX_FILE_BYTES:
        allowed = (
            f"a folder of code: {MAX_BYTES // 10**6} MB in all and {MAX_FILE_BYTES // 10**6} MB a "
            f"file at most ({total / 1e6:.0f} MB are there, {sizes[largest] / 1e6:.0f} of them in "
            f"{largest})"
        )
        do = f"have git ignore data, or {LIST_IT}"
        raise UserError("trainer.code", str(folder), allowed, do)


def changed(planned: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Return what is different now, as `changed: train.py`, `new: x.py` and `gone: y.py`.

    Args:
        planned: files by path, as in :attr:`Code.files`.
        now: the same.
    """
    other = [name for name in planned.keys() & now.keys() if planned[name] != now[name]]
    kinds = {
        "changed": other,
        "new": now.keys() - planned.keys(),
        "gone": planned.keys() - now.keys(),
    }
    return tuple(f"{kind}: {name}" for kind, names in kinds.items() for name in sorted(names))


def code_changed(folder: Path, differences: Sequence[str]) -> UserError:
    """Return the mistake that a trainer's code is not what was planned.

    Args:
        folder: of the code.
        differences: what :func:`changed` returned.
    """
    named = ", ".join(differences[:_NUM_NAMED])
    if (num_more := len(differences) - _NUM_NAMED) > 0:
        named += f" and {num_more} more"
    return UserError(
        "trainer.code",
        str(folder),
        f"as it was planned ({named})",
        "restore it (`git stash` keeps your changes), or plan a study of another name",
    )


def check_relative(field_name: str, text: str, folder: Path, code: Code) -> None:
    """Refuse a whole path of code in a command: runs start in a copy of the code as planned.

    Args:
        field_name: of the command or variable.
        text: an argument, or a variable's value.
        folder: of the code.
        code: its files.

    Raises:
        UserError: there is such a path in it.
    """
    for root in (os.path.normpath(folder.absolute()), os.path.realpath(folder)):
        # The folder itself, too, and nothing whose name only begins like its own.
        for path in re.findall(re.escape(root) + r"(?:/([^\s:;,'\"]*))?(?=$|[\s:;,'\"])", text):
            name = path.rstrip("/")
            is_folder = any(each.startswith(f"{name}/") for each in code.files)
            if not name or name in code.files or is_folder:
                allowed = "paths from the code folder, since runs start in a copy of it as planned"
                raise UserError(field_name, text, allowed, f"write {path or '.'}")


def write_code(study_folder: Path, code: Code) -> None:
    """Write the record of a study's code; it comes before the plan.

    Raises:
        UserError: there is a link in its place.
    """
    path = study_folder / CODE_FILE
    refuse_links(path)
    values = {
        "schema_version": CODE_SCHEMA_VERSION,
        "code_digest": code.digest,
        "commit": code.commit,
        "files": dict(sorted(code.files.items())),
    }
    write_json_atomic(path, values)


def read_code(study_folder: Path, digest: str) -> Code:
    """Return a study's code as it was planned.

    Args:
        study_folder: the study's folder.
        digest: of the code, as the plan has it.

    Raises:
        UserError: the record is missing, damaged, or that of other code than the plan's.
    """
    path = study_folder / CODE_FILE
    refuse_links(path)
    found = read_record(_CodeRecord, path, "code of the trainer", _DO_RECORD)
    code = Code(files=found.files, commit=found.commit)
    for given in (found.code_digest, code.digest):
        if given != digest:
            allowed = f"{digest!r}, that of the plan and of the files"
            raise wrong_in_file(path, "code_digest", given, allowed, _DO_RECORD)
    return code


@dataclass(frozen=True, kw_only=True, slots=True)
class _CodeRecord:
    __pydantic_config__: ClassVar = CLOSED

    schema_version: Literal[1]
    code_digest: Digest
    commit: str | None
    files: dict[str, _Mark]

    def __post_init__(self) -> None:
        for name in self.files:
            # None of ours is hidden; `..` is refused with them.
            is_inside = all(part and not part.startswith(".") for part in name.split("/"))
            if not is_inside or has_control(name):
                allowed = "paths of files below the code folder"
                raise UserError("files", shown(ascii(name)), allowed, _DO_RECORD)
