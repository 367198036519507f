"""Compares a figure with the committed image of its name.

A figure that was changed on purpose: `ISOFLOP_WRITE_BASELINE=1 pytest FILE -k NAME` writes its
image anew; look at it before it is committed.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from isoflop import plot_style
from isoflop.analysis.figures import draw_page
from isoflop.analysis.result import Fits

BASELINE = Path(__file__).parent / "baseline"
DPI = 50
# Root mean square over the pixels, of 255: a legend that moved by a line has more than twice this.
TOLERANCE = 1.5
MOST_BYTES = 30_000


def page(fits: Fits, stem: str) -> Figure:
    """Return a figure as the report draws it."""
    with plot_style.style():
        return draw_page(fits, stem)


def difference(figure: Figure, name: str, folder: Path, dpi: int = DPI) -> str | None:
    """Return how a figure differs from its image; None where it does not."""
    drawn, expected = folder / f"{name}.png", BASELINE / f"{name}.png"
    figure.savefig(drawn, dpi=dpi)
    return compare_images(str(expected), str(drawn), TOLERANCE)


def check(figure: Figure, name: str, folder: Path, dpi: int = DPI) -> None:
    """Fail where a figure differs from its image.

    Args:
        figure: to compare.
        name: of the image, without its suffix.
        folder: for what is drawn and for the picture of the difference.
        dpi: fewer for a large figure, whose image is to stay small.
    """
    expected = BASELINE / f"{name}.png"
    if os.environ.get("ISOFLOP_WRITE_BASELINE"):
        _write(figure, expected, dpi)
        assert expected.stat().st_size < MOST_BYTES
        return
    # Another release of matplotlib sets texts otherwise.
    with Image.open(expected) as image:
        written_by = image.info["Software"]
    if _release(written_by) != _release(mpl.__version__):
        pytest.skip(f"{name}.png is of another release of matplotlib")
    found = difference(figure, name, folder, dpi)
    assert found is None, found


def _write(figure: Figure, path: Path, dpi: int) -> None:
    """Write an image without the alpha that no pixel uses."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    drawn = Image.open(buffer)
    info = PngInfo()
    info.add_text("Software", drawn.info["Software"])
    drawn.convert("RGB").save(path, optimize=True, pnginfo=info)


def _release(version: str) -> list[str]:
    """Return (major, minor) of "Matplotlib version3.11.2, https://matplotlib.org/" or "3.11.2"."""
    return version.split(",")[0].removeprefix("Matplotlib version").split(".")[:2]
