"""Code blocks of a Markdown document, and the one script that they make together."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)")
_COMMENT = re.compile(r"(^|\s+)#\s.*$")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block."""

    language: str
    line: int
    """Of its first line of text in the document, from 1."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a block: a line, with those that continue it or are its here-document."""

    line: int
    lines: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called in tables: its text without comment and here-document, on one line."""
        continued = 1 + next(
            i for i, line in enumerate(self.lines) if not line.rstrip().endswith("\\")
        )
        words = (_COMMENT.sub("", line).rstrip("\\ ") for line in self.lines[:continued])
        return " ".join(word.strip() for word in words)


def blocks(document: Path, language: str) -> list[Block]:
    text = document.read_text()
    return [
        Block(language=match[1], line=text.count("\n", 0, match.start(2)) + 1, text=match[2])
        for match in _BLOCK.finditer(text)
        if match[1] == language
    ]


def commands(document: Path) -> list[Command]:
    return [command for block in blocks(document, "sh") for command in _commands(block)]


def script(document: Path, left_out: Collection[str] = ()) -> str:
    """All commands but those ``left_out`` by name, and all Python, in order.

    Each line is where the document has it, so that bash's own messages name the document's lines.
    """
    lines = [""] * document.read_text().count("\n")
    for command in commands(document):
        if command.name not in left_out:
            first = command.line - 1
            lines[first : first + len(command.lines)] = command.lines
    for block in blocks(document, "python"):
        # The fences' lines begin and end Python's input.
        code = ["python - <<'END_OF_BLOCK'", *block.text.splitlines(), "END_OF_BLOCK"]
        lines[block.line - 2 : block.line - 2 + len(code)] = code
    return "\n".join(lines) + "\n"


def _commands(block: Block) -> list[Command]:
    found: list[Command] = []
    lines = block.text.splitlines()
    position = 0
    while position < len(lines):
        end = _end(lines, position)
        if _COMMENT.sub("", lines[position]).strip():
            found.append(Command(line=block.line + position, lines=tuple(lines[position:end])))
        position = end
    return found


def _end(lines: list[str], position: int) -> int:
    """Behind the last line of the command that begins at a position."""
    while lines[position].rstrip().endswith("\\"):
        position += 1
    if heredoc := _HEREDOC.search(lines[position]):
        position = lines.index(heredoc[1], position + 1)
    return position + 1
