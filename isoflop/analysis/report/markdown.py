"""A report as GitHub-flavoured Markdown."""

from __future__ import annotations

import re

from isoflop.analysis.report.document import Block, Document, Items, Picture, Table

# Characters that Markdown or the HTML inside it would read as markup.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$&])")
# At the start of a line these begin a list, a heading or a quotation.
_LINE_START = re.compile(r"^(\s*)([-+=]|\d+(?=[.)]))")


def escape(text: str) -> str:
    """Return the text so that Markdown shows it as it is, on one line of its own."""
    escaped = escape_inside(text)
    return _LINE_START.sub(lambda m: f"{m[1]}&#{ord(m[2][0])};{m[2][1:]}", escaped)


def escape_inside(text: str) -> str:
    """Return the text so that Markdown shows it as it is inside a line, such as a table's."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def render(document: Document) -> str:
    """Return the whole report; figures are linked as plots/STEM.png."""
    parts = [f"# {escape(document.title)}", escape(document.subtitle)]
    for section in document.sections:
        parts.append(f"## {escape(section.title)}")
        parts.extend(_block(block) for block in section.blocks)
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case str():
            return escape(block)
        case Items():
            return "\n".join(f"- {escape(item)}" for item in block.items)
        case Picture():
            caption = escape(block.caption)
            return f"![{caption}](plots/{block.stem}.png)\n\n*{caption}*"
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    lines = [
        _row([escape_inside(column.label) for column in table.columns]),
        _row(["---:" if column.is_number else "---" for column in table.columns]),
        *(_row([escape_inside(cell.text) for cell in row]) for row in table.rows),
    ]
    return f"**{escape(table.caption)}**\n\n" + "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
