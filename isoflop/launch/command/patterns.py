"""Regular expressions of a study on the lines of a log, in a process of their own.

A pattern may take ages on an unlucky line, and meanwhile no other thread of its process runs, not
even a heartbeat. This very file is that process, too: `python -I -S patterns.py`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

TIMEOUT_S = 10.0
"""For a block of a log; ordinary patterns take some hundredths of a second."""

# What a terminal shows as colours.
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# A progress bar draws itself anew on one line.
_LINE_ENDS = re.compile(r"[\r\n]+")
_MAX_LINE = 10_000

STEP, TOKENS = "step", "tokens"
"""Names of groups that stand beside the value on the same line."""


class SlowPatternError(Exception):
    """Patterns took longer than :data:`TIMEOUT_S`."""


def rows_by_patterns(patterns: Sequence[str], text: str) -> list[dict[str, str]]:
    """Return what patterns find in each line of a text in which one of them finds something.

    A row has a pattern's value by the pattern itself: of its last match in the line, the group
    `loss` or else the first. Groups named `step` and `tokens` are entries of that name beside it.

    Raises:
        SlowPatternError: they take longer than :data:`TIMEOUT_S`.
    """
    command = [sys.executable, "-I", "-S", __file__]
    request = json.dumps({"patterns": list(patterns), "text": text}).encode("ascii")
    try:
        found = subprocess.run(
            command, input=request, stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=True
        )
    except subprocess.TimeoutExpired:
        raise SlowPatternError(f"it took more than {TIMEOUT_S:g} s for a part of the log") from None
    rows: list[dict[str, str]] = json.loads(found.stdout)
    return rows


def _rows(request: Mapping[str, Any]) -> list[dict[str, str]]:
    patterns = [(text, re.compile(text)) for text in request["patterns"]]
    rows = []
    for line in _LINE_ENDS.split(_ESCAPES.sub("", request["text"])):
        row: dict[str, str] = {}
        for text, pattern in patterns:
            for match in pattern.finditer(line[:_MAX_LINE]):
                row |= _entries(text, match)
        if row:
            rows.append(row)
    return rows


def _entries(pattern: str, match: re.Match[str]) -> dict[str, str]:
    named = match.groupdict()
    beside = {match.re.groupindex.get(name) for name in (STEP, TOKENS)}
    others = [number for number in range(1, match.re.groups + 1) if number not in beside]
    value = named["loss"] if "loss" in named else match[others[0] if others else 1]
    entries = {pattern: value, STEP: named.get(STEP), TOKENS: named.get(TOKENS)}
    return {name: text for name, text in entries.items() if text is not None}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_rows(json.load(sys.stdin))))
