"""What a folder holds, to see whether anything in it was touched."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

Entry = tuple[str, int, int, str]
"""Kind, mode, time of the last change in ns, and digest of the content or target of the link."""


def listing(folder: Path) -> dict[str, Entry]:
    """Return all that is in a folder, by its path below it; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            kind, content = "link", str(path.readlink()).encode()
        elif stat.S_ISREG(about.st_mode):
            kind, content = "file", path.read_bytes()
        else:
            kind, content = "folder", b""
        digest = hashlib.sha256(content).hexdigest()
        found[str(path.relative_to(folder))] = (kind, about.st_mode, about.st_mtime_ns, digest)
    return found
