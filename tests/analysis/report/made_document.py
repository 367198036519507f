"""A small document with one table, one figure and text that must be escaped."""

from __future__ import annotations

import io

from isoflop import plot_style
from isoflop.analysis.figures import marks
from isoflop.analysis.report.document import (
    Document,
    Items,
    Picture,
    Section,
    label_column,
    number_column,
    table,
    text_column,
)
from isoflop.analysis.report.figures import inline
from isoflop.analysis.report.renderers import html_page

NASTY = "<script>window.hacked = 1</script>"
NAMES = (NASTY, "a|b", "c_d & 50 % of $x$", "zeta \\ {q} ~ ^", "`e` *f* #1", '"quoted"')
NUMBERS = (10.0, None, 1e18, 2.0, float("nan"), -3.0)


def made_document() -> Document:
    """Return the document; its first table has six rows, two without a number."""
    columns = [
        label_column("name", "Name"),
        number_column("number", "Number"),
        text_column("status", "Status"),
    ]
    rows = [
        {"name": name, "number": number, "status": "edge_low"}
        for name, number in zip(NAMES, NUMBERS, strict=True)
    ]
    wide = [number_column(f"column{i}", f"A wide column {i}") for i in range(20)]
    blocks = (
        f"A paragraph with {NASTY} in it.",
        Items(items=("1. one * two", "- three < four")),
        Picture(stem="dots", caption='Two dots, "quoted" & <such>.'),
        table("Things & <others>", columns, rows),
        table("Wide", wide, [{f"column{i}": 1.5 for i in range(20)}]),
    )
    return Document(
        title="A & B <report>",
        subtitle="x" * 300,
        sections=(Section(key="only", title="Only < section", blocks=blocks),),
    )


def made_svg() -> tuple[bytes, dict[str, list[str]]]:
    """Return a drawn figure of two markers and some text, and the texts of its markers."""
    with plot_style.style():
        figure = plot_style.new_figure(3.5, 2.0)
        axes = figure.subplots()
        mark = plot_style.family_mark(0)
        marks.draw_marks(axes, [(1, 3), (2, 4)], mark, ["first", "second <b>"], linestyle="-")
        axes.plot([1, 2], [4, 3], color="black")
        tips = marks.collect_tips(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue(), tips


def made_page() -> str:
    """Return the document as a page."""
    svg, tips = made_svg()
    picture = inline(svg, "dots", tips, plot_style.family_colours())
    return html_page(made_document(), {"dots": picture})
