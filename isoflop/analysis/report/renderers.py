"""A report as GitHub-flavoured Markdown, as one HTML file, and its tables in LaTeX.

The HTML needs nothing else: no network, no other file. LaTeX needs booktabs alone, and is for show:
the parquet tables hold the full precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from isoflop.analysis.report.document import Block, Cell, Document, Items, Picture, Table
from isoflop.pages import render_page

# Characters that Markdown or the HTML inside it would read as markup.
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$&])")
# At the start of a line these begin a list, a heading or a quotation.
_LINE_START = re.compile(r"^(\s*)([-+=]|\d+(?=[.)]))")
_TEMPLATES = Path(__file__).parent / "templates"
# A page holds about this many rows.
_ROWS_PER_TABLE = 40
# Words longer than this wrap inside their column.
_WIDE_TEXT = 40
_LATEX_COMMANDS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "²": r"\textsuperscript{2}",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "∞": r"$\infty$",
    "σ": r"$\sigma$",
    "√": r"$\surd$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
_LATEX_SPECIAL = re.compile("|".join(re.escape(sign) for sign in _LATEX_COMMANDS))


def escape_markdown(text: str) -> str:
    """Return the text so that Markdown shows it as it is, on one line of its own."""
    escaped = escape_in_line(text)
    return _LINE_START.sub(lambda m: f"{m[1]}&#{ord(m[2][0])};{m[2][1:]}", escaped)


def escape_in_line(text: str) -> str:
    """Return the text so that Markdown shows it as it is inside a line, such as a table's."""
    return _MARKDOWN_SPECIAL.sub(r"\\\1", " ".join(text.split()))


def markdown_page(document: Document) -> str:
    """Return the whole report; figures are linked as plots/STEM.png."""
    parts = [f"# {escape_markdown(document.title)}", escape_markdown(document.subtitle)]
    for section in document.sections:
        parts.append(f"## {escape_markdown(section.title)}")
        parts.extend(_markdown_block(block) for block in section.blocks)
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case str():
            return escape_markdown(block)
        case Items():
            return "\n".join(f"- {escape_markdown(item)}" for item in block.items)
        case Picture():
            caption = escape_markdown(block.caption)
            return f"![{caption}](plots/{block.stem}.png)\n\n*{caption}*"
        case Table():
            return _markdown_table(block)


def _markdown_table(table: Table) -> str:
    lines = [
        _markdown_row([escape_in_line(column.label) for column in table.columns]),
        _markdown_row(["---:" if column.is_number else "---" for column in table.columns]),
        *(_markdown_row([escape_in_line(cell.text) for cell in row]) for row in table.rows),
    ]
    return f"**{escape_markdown(table.caption)}**\n\n" + "\n".join(lines)


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def html_page(document: Document, pictures: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        document: what to show; its texts are escaped here.
        pictures: the SVG of each figure by its stem, already safe to stand in a page
            (isoflop.analysis.report.figures).
    """
    tests = {
        "items": lambda block: isinstance(block, Items),
        "picture": lambda block: isinstance(block, Picture),
        "table": lambda block: isinstance(block, Table),
    }
    return render_page(_TEMPLATES, "report", tests=tests, document=document, pictures=pictures)


def escape_latex(text: str) -> str:
    """Return the text so that LaTeX prints it as it is, on one line."""
    return _LATEX_SPECIAL.sub(lambda match: _LATEX_COMMANDS[match[0]], " ".join(text.split()))


def latex_tables(document: Document) -> str:
    r"""Return all tables; needs \usepackage[T1]{fontenc} and \usepackage{booktabs}."""
    parts = [
        f"% {' '.join(document.title.split())}",
        r"% In the preamble: \usepackage[T1]{fontenc} \usepackage{booktabs}",
    ]
    for section in document.sections:
        for index, block in enumerate(section.blocks):
            if isinstance(block, Table) and block.rows:
                parts.append(_latex_tables(block, f"tab:{section.key}-{index}"))
    return "\n\n".join(parts) + "\n"


def _latex_tables(table: Table, label: str) -> str:
    """Return the table, cut into several where it is longer than a page."""
    cuts = range(0, len(table.rows), _ROWS_PER_TABLE)
    return "\n\n".join(
        _latex_table(
            table,
            table.rows[cut : cut + _ROWS_PER_TABLE],
            caption=table.caption if cut == 0 else f"{table.caption} (continued)",
            label=label if cut == 0 else f"{label}-{cut}",
        )
        for cut in cuts
    )


def _latex_table(
    table: Table, rows: Sequence[tuple[Cell, ...]], *, caption: str, label: str
) -> str:
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{escape_latex(caption)}}}\label{{{label}}}",
            rf"\begin{{tabular}}{{{''.join(_latex_kinds(table))}}}",
            r"\toprule",
            _latex_row([column.label for column in table.columns]),
            r"\midrule",
            *(_latex_row([cell.text for cell in row]) for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_kinds(table: Table) -> list[str]:
    """Return the column specifiers: numbers right, long texts as wrapping paragraphs."""
    return [
        "r"
        if column.is_number
        else r"p{0.4\linewidth}"
        if any(len(row[index].text) > _WIDE_TEXT for row in table.rows)
        else "l"
        for index, column in enumerate(table.columns)
    ]


def _latex_row(texts: Sequence[str]) -> str:
    # Braces keep a cell that starts with a bracket from being read as the argument of \\.
    return " & ".join(f"{{{escape_latex(text)}}}" for text in texts) + r" \\"
