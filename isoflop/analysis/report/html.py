"""A report as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from isoflop.analysis.report.document import Document, Items, Picture, Table
from isoflop.pages import render_page

_TEMPLATES = Path(__file__).parent / "templates"


def render(document: Document, pictures: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        document: what to show; its texts are escaped here.
        pictures: the SVG of each figure by its stem, already safe to stand in a page
            (isoflop.analysis.report.inline_svg).
    """
    tests = {
        "items": lambda block: isinstance(block, Items),
        "picture": lambda block: isinstance(block, Picture),
        "table": lambda block: isinstance(block, Table),
    }
    return render_page(_TEMPLATES, "report", tests=tests, document=document, pictures=pictures)
