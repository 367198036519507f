"""The page as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.pages import render_page

_TEMPLATES = Path(__file__).parent / "templates"


def render(
    *,
    title: str,
    subtitle: str,
    notes: Sequence[str],
    usage_heads: Sequence[str],
    usage: Sequence[Sequence[str]],
    data: Mapping[str, Any],
) -> str:
    """Return the page; all texts are escaped here, those in ``data`` too."""
    return render_page(
        _TEMPLATES,
        "page",
        title=title,
        subtitle=subtitle,
        notes=notes,
        usage_heads=usage_heads,
        usage=usage,
        data=_json(data),
    )


def _json(data: Mapping[str, Any]) -> str:
    """Return JSON that no parser of HTML takes for the end of its element or for a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
