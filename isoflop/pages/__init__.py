"""HTML pages that need nothing else: no network, no other file. What all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_THEME = Path(__file__).parent / "theme.js"


def render_page(
    templates: Path,
    name: str,
    *,
    tests: Mapping[str, Callable[[Any], bool]] | None = None,
    **values: Any,
) -> str:
    """Return a page with its style and scripts inside; all texts among ``values`` are escaped.

    Args:
        templates: folder of NAME.html, NAME.css and NAME.js. The template gets ``css`` and
            ``script``, which switches between light and dark before it does its own.
        name: NAME.
        tests: further tests of the template's.
        values: what the template shows.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests.update(tests or {})
    scripts = (_THEME, templates / f"{name}.js")
    return environment.get_template(f"{name}.html").render(
        css=(templates / f"{name}.css").read_text(encoding="utf-8"),
        script="\n".join(path.read_text(encoding="utf-8") for path in scripts),
        **values,
    )
