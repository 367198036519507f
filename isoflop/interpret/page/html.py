"""The page as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        notes=notes,
        usage_heads=usage_heads,
        usage=usage,
        data=_json(data),
        css=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=(_TEMPLATES / "page.js").read_text(encoding="utf-8"),
    )


def _json(data: Mapping[str, Any]) -> str:
    """JSON that no parser of HTML takes for the end of its element or for a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
