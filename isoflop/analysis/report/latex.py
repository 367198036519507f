"""The tables of a report in LaTeX, with booktabs rules and no other package.

For show: the parquet tables hold the full precision.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from isoflop.analysis.report.document import Cell, Document, Table

# A page holds about this many rows.
_ROWS_PER_TABLE = 40
# Words longer than this wrap inside their column.
_WIDE_TEXT = 40

_COMMANDS = {
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
_SPECIAL = re.compile("|".join(re.escape(sign) for sign in _COMMANDS))


def escape(text: str) -> str:
    """Return the text so that LaTeX prints it as it is, on one line."""
    return _SPECIAL.sub(lambda match: _COMMANDS[match[0]], " ".join(text.split()))


def render(document: Document) -> str:
    r"""Return all tables; needs \usepackage[T1]{fontenc} and \usepackage{booktabs}."""
    parts = [
        f"% {' '.join(document.title.split())}",
        r"% In the preamble: \usepackage[T1]{fontenc} \usepackage{booktabs}",
    ]
    for section in document.sections:
        for index, block in enumerate(section.blocks):
            if isinstance(block, Table) and block.rows:
                parts.append(_tables(block, f"tab:{section.key}-{index}"))
    return "\n\n".join(parts) + "\n"


def _tables(table: Table, label: str) -> str:
    """Return the table, cut into several where it is longer than a page."""
    cuts = range(0, len(table.rows), _ROWS_PER_TABLE)
    return "\n\n".join(
        _one_table(
            table,
            table.rows[cut : cut + _ROWS_PER_TABLE],
            caption=table.caption if cut == 0 else f"{table.caption} (continued)",
            label=label if cut == 0 else f"{label}-{cut}",
        )
        for cut in cuts
    )


def _one_table(table: Table, rows: Sequence[tuple[Cell, ...]], *, caption: str, label: str) -> str:
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{escape(caption)}}}\label{{{label}}}",
            rf"\begin{{tabular}}{{{''.join(_kinds(table))}}}",
            r"\toprule",
            _row([column.label for column in table.columns]),
            r"\midrule",
            *(_row([cell.text for cell in row]) for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _kinds(table: Table) -> list[str]:
    """Return the column specifiers: numbers right, long texts as wrapping paragraphs."""
    return [
        "r"
        if column.is_number
        else r"p{0.4\linewidth}"
        if any(len(row[index].text) > _WIDE_TEXT for row in table.rows)
        else "l"
        for index, column in enumerate(table.columns)
    ]


def _row(texts: Sequence[str]) -> str:
    # Braces keep a cell that starts with a bracket from being read as the argument of \\.
    return " & ".join(f"{{{escape(text)}}}" for text in texts) + r" \\"
