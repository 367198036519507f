"""A report as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from isoflop.analysis.report.document import Document, Items, Picture, Table

_TEMPLATES = Path(__file__).parent / "templates"


def render(document: Document, pictures: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        document: what to show; its texts are escaped here.
        pictures: the SVG of each figure by its stem, already safe to stand in a page
            (isoflop.analysis.report.inline_svg).
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests.update(
        items=lambda block: isinstance(block, Items),
        picture=lambda block: isinstance(block, Picture),
        table=lambda block: isinstance(block, Table),
    )
    return environment.get_template("report.html").render(
        document=document,
        pictures=pictures,
        css=(_TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=(_TEMPLATES / "report.js").read_text(encoding="utf-8"),
    )
