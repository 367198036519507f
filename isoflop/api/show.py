"""What a notebook or a terminal shows of results: what they are, what is claimed, what to mind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from isoflop.analysis.points import Selection
from isoflop.analysis.report.comparison import findings
from isoflop.analysis.result import Fits, left_out_note
from isoflop.analysis.validity.attention import attention
from isoflop.api.rows import Rows
from isoflop.numbers import format_flops
from isoflop.texts import printable
from isoflop.units import unit_words

# Of more archs, budgets or sentences the first are shown.
_MOST_NAMED = 8
_MOST_SENTENCES = 10

_NOT_FITTED = "Not fitted yet: .fit() fits all, which takes up to a minute."


@dataclass(frozen=True, kw_only=True, slots=True)
class _Page:
    title: str
    entries: tuple[tuple[str, str], ...]
    """(what, value)."""
    lists: tuple[tuple[str, tuple[str, ...]], ...]
    """(heading, sentences)."""


def text_of(name: str, read: Rows, selection: Selection, fits: Fits | None) -> str:
    """Return what results are, as lines of text.

    Args:
        name: of the study or the table.
        read: the runs.
        selection: those that enter fits.
        fits: their fit; None where there is none yet.
    """
    page = _page(name, read, selection, fits)
    width = max(len(what) for what, _ in page.entries)
    lines = [page.title, *(f"  {what:<{width}}  {value}" for what, value in page.entries)]
    for heading, sentences in page.lists:
        lines += [heading, *(f"  {sentence}" for sentence in sentences)]
    return "\n".join(printable(line) for line in lines)


def html_of(name: str, read: Rows, selection: Selection, fits: Fits | None) -> str:
    """Return the same as HTML, with every name escaped; see `text_of`."""
    page = _page(name, read, selection, fits)
    parts = [f"<b>{_html(page.title)}</b>", "<table>"]
    for what, value in page.entries:
        left = 'style="text-align: left"'
        parts.append(f"<tr><th {left}>{_html(what)}</th><td {left}>{_html(value)}</td></tr>")
    parts.append("</table>")
    for heading, sentences in page.lists:
        parts.append(f"<p>{_html(heading)}</p>")
        if sentences:
            items = "".join(f"<li>{_html(sentence)}</li>" for sentence in sentences)
            parts.append(f"<ul>{items}</ul>")
    return f"<div>{''.join(parts)}</div>"


def _page(name: str, read: Rows, selection: Selection, fits: Fits | None) -> _Page:
    entries = [
        ("runs", _runs(read)),
        ("excluded", left_out_note(selection)),
        ("archs", _named(selection.archs)),
        ("budgets", _named([format_flops(budget) for budget in selection.budgets])),
        ("losses", unit_words(read.unit)),
        ("from", read.label),
    ]
    if read.mapped is not None:
        entries.append(("columns", "; ".join(read.mapped.columns)))
    lists: list[tuple[str, tuple[str, ...]]] = []
    if read.mapped is not None and read.mapped.notes:
        lists.append(("Of its columns (options as isoflop import has them):", read.mapped.notes))
    if fits is None:
        lists.append((_NOT_FITTED, ()))
    else:
        entries.append(("reference", fits.reference or "none"))
        lists.append(("Findings:", _first(findings(fits))))
        if minded := attention(fits):
            lists.append(("Needs attention:", _first(minded)))
    return _Page(title=f"isoflop results: {name}", entries=tuple(entries), lists=tuple(lists))


def _runs(read: Rows) -> str:
    counts = Counter(row.get("status", "done") for row in read.rows)
    others = ", ".join(
        f"{num} {status}" for status, num in sorted(counts.items()) if status != "done"
    )
    total = f"{counts['done']} done of {len(read.rows)}"
    return f"{total}, {others}" if others else total


def _named(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = len(names) - _MOST_NAMED
    rest = f" and {more} more" if more > 0 else ""
    return f"{', '.join(names[:_MOST_NAMED])}{rest}"


def _first(sentences: Sequence[str]) -> tuple[str, ...]:
    more = len(sentences) - _MOST_SENTENCES
    if more <= 0:
        return tuple(sentences) or ("There are no two archs to compare.",)
    return (*sentences[:_MOST_SENTENCES], f"and {more} more: .report(folder) has all.")


def _html(text: str) -> str:
    return escape(printable(text))
