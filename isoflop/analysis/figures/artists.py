"""Artists of these figures that matplotlib does not have; importing this imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox, BboxBase


class PageFigure(Figure):
    """A figure that belongs to no window, and whose size what draws into it chooses."""


class Marks(Line2D):
    """Markers of runs or optima; each has a hover text, which the HTML report shows."""

    def __init__(
        self, points: Sequence[tuple[float, float]], *, tips: Sequence[str], **style: Any
    ) -> None:
        assert len(points) == len(tips)
        super().__init__([x for x, _ in points], [y for _, y in points], **style)
        self.tips = tuple(tips)


class LegendAboveNote(Legend):
    """A legend below the panels of a figure that stands above the figure's note.

    The constrained layout gives both the lower edge of the figure, one over the other.
    """

    def __init__(self, figure: Any, handles: Sequence[Any], note: Text, **style: Any) -> None:
        # Before the rest, which asks where the legend stands.
        self._note = note
        labels = [str(handle.get_label()) for handle in handles]
        super().__init__(figure, list(handles), labels, loc="outside lower center", **style)
        figure.legends.append(self)
        # As figure.legend does, so that it can be removed.
        self._remove_method = figure.legends.remove

    def _room(self, renderer: RendererBase | None = None) -> float:
        """Return the pixels that the note takes."""
        if not self._note.get_text():
            return 0.0
        return float(self._note.get_window_extent(renderer).height)

    def set_bbox_to_anchor(self, bbox: Any, transform: Any = None) -> None:
        """Put the legend elsewhere; None: back above the note."""
        self._is_moved = bbox is not None
        super().set_bbox_to_anchor(bbox, transform)

    def get_bbox_to_anchor(self) -> BboxBase:
        """Return the figure without its note, or where a caller has put the legend since."""
        if self._is_moved:
            return super().get_bbox_to_anchor()
        box = self.parent.bbox
        return Bbox.from_extents(box.x0, box.y0 + self._room(), box.x1, box.y1)

    def get_tightbbox(self, renderer: RendererBase | None = None) -> Bbox:
        """Return the box of the legend and of the note below it."""
        box = super().get_tightbbox(renderer)
        assert box is not None
        return Bbox.from_extents(box.x0, box.y0 - self._room(renderer), box.x1, box.y1)
