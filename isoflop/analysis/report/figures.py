"""The figures of a report: drawn once, written as PNG, SVG and PDF, and inlined in the page.

An inlined SVG gets ids of its own, the page's colours and the hover texts.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

from isoflop import plot_style
from isoflop.analysis.figures import draw_page, marks
from isoflop.analysis.report.document import Document, Picture
from isoflop.analysis.result import Fits
from isoflop.files import make_own_folder

_FORMATS: tuple[plot_style.Format, ...] = ("png", "svg", "pdf")
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_HREF = f"{{{_XLINK}}}href"
# The neutral colours of the plots become the page's, so that they turn with light and dark.
_PAGE_COLOURS = {
    "#000000": "var(--ink)",
    "#ffffff": "var(--paper)",
    "#e0e0e0": "var(--rule)",
    "#404040": "var(--soft)",
    "#606060": "var(--soft)",
}
# Any other colour, a budget's, is as in print on a light page and lighter on a dark one.
_LIFTED = "color-mix(in srgb, {}, white var(--lift))"
# CSS pixels per point: text of 7 points becomes 14 pixels.
_ZOOM = 2.0
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_URL = re.compile(r"url\(#")


def write_figures(
    fits: Fits, document: Document, folder: Path
) -> tuple[tuple[Path, ...], dict[str, str]]:
    """Write the document's figures; return their paths, and the inlined SVG of each by stem."""
    make_own_folder(folder)
    paths: list[Path] = []
    pictures = {}
    for stem in _stems(document):
        with plot_style.style():
            figure = draw_page(fits, stem)
            tips = marks.collect_tips(figure)
            written = plot_style.save(figure, folder, stem, _FORMATS)
        paths.extend(written)
        svg = next(path for path in written if path.suffix == ".svg").read_bytes()
        pictures[stem] = inline(svg, stem, tips, plot_style.family_colours())
    return tuple(paths), pictures


def _stems(document: Document) -> list[str]:
    return [
        block.stem
        for section in document.sections
        for block in section.blocks
        if isinstance(block, Picture)
    ]


def inline(svg: bytes, stem: str, tips: Mapping[str, Sequence[str]], family: Sequence[str]) -> str:
    """Return an <svg> element.

    Args:
        svg: a file that matplotlib wrote.
        stem: prefix of all ids, which differ between the figures of a page.
        tips: by the id of a line, the hover text of each of its markers in order.
        family: the families' colours; the i-th becomes the page's --family-i.
    """
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg)
    colours = {**{c.lower(): f"var(--family-{i})" for i, c in enumerate(family)}, **_PAGE_COLOURS}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}metadata":
                parent.remove(child)
        _add_tips(parent, tips)
        for name, value in parent.attrib.items():
            parent.attrib[name] = _attribute(name, value, stem, colours)
    # The page sets the size, up to a multiple of that in print.
    root.set(
        "style", f"max-width: {float(root.attrib.pop('width').removesuffix('pt')) * _ZOOM:g}px"
    )
    root.attrib.pop("height")
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    return ET.tostring(root, encoding="unicode")


def _add_tips(element: ET.Element, tips: Mapping[str, Sequence[str]]) -> None:
    """Write a line's hover texts to its markers, which matplotlib draws as <use> elements."""
    texts = tips.get(element.get("id", ""))
    if texts is None:
        return
    markers = list(element.iter(f"{{{_SVG}}}use"))
    assert len(markers) == len(texts), (len(markers), texts)
    for marker, text in zip(markers, texts, strict=True):
        marker.set("data-tip", text)


def _attribute(name: str, value: str, stem: str, colours: Mapping[str, str]) -> str:
    if name == "id":
        return f"{stem}-{value}"
    if name == _HREF and value.startswith("#"):
        return f"#{stem}-{value[1:]}"
    if name in ("style", "fill", "stroke", "clip-path"):
        value = _URL.sub(f"url(#{stem}-", value)
        return _COLOUR.sub(lambda m: colours.get(m[0].lower(), _LIFTED.format(m[0])), value)
    return value
