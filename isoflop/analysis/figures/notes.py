"""What figures say below their panels of what is drawn and what is not."""

from __future__ import annotations

from isoflop.analysis.figures.shown import Shown
from isoflop.analysis.result import Fits, declared_note, excluded_note


def run_notes(fits: Fits) -> list[str]:
    """Return what any figure says of the runs: those excluded, declared FLOPs."""
    declared = declared_note(fits)
    return [excluded_note(fits), *([] if declared is None else [declared])]


def families_note(fits: Fits, seen: Shown) -> list[str]:
    """Return a line on the families that a page has no room for; none where there are none."""
    if not seen.is_cut:
        return []
    num = f"{len(seen.archs)} of {len(fits.archs)}"
    return [f"Drawn: {num} families, the reference among them."]
