"""The figure of the interventions: what each control does, layer by layer and up to each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop import plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEM = "interventions"
_PANELS = {
    "nie": "Normalised indirect effect",
    "answers_cf": "Share answering counterfactually",
}
_HEIGHT = 2.9
# Of the space between two sets of layers, what the marks of one take.
_SPREAD = 0.6


def draw_effects(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each control's effect with its interval; rows of isoflop.interpret.effects.EFFECTS."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(plot_style.PAGE_WIDTH, _HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(_PANELS), sharex=True)
    for axes, (name, label) in zip(panels, _PANELS.items(), strict=True):
        _draw_panel(axes, rows, name)
        axes.set_ylabel(label)
        axes.set_xlabel("Patched layers")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    confidence = rows[0]["confidence"]
    figure.suptitle(
        f"Gates of another noun, and controls ({confidence:.0%} intervals over nouns)",
        fontsize=plot_style.FONT_SIZE,
    )
    return figure


def save_effects(rows: Sequence[Mapping[str, Any]], folder: Path) -> tuple[Path, ...]:
    """Write interventions.png and .svg into ``folder``."""
    with plot_style.style():
        return plot_style.save(draw_effects(rows), folder, STEM)


def _draw_panel(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    layers = list(dict.fromkeys(row["layers"] for row in rows))
    controls = list(dict.fromkeys(row["control"] for row in rows))
    for index, control in enumerate(controls):
        mark = plot_style.family_mark(index)
        shift = _SPREAD * (index / max(len(controls) - 1, 1) - 0.5)
        known = [row for row in rows if row["control"] == control and row[name] is not None]
        if not known:
            continue
        axes.errorbar(
            [layers.index(row["layers"]) + shift for row in known],
            [row[name] for row in known],
            # A mean can lie outside a percentile interval by rounding alone.
            yerr=[
                [max(0.0, row[name] - row[f"{name}_lo"]) for row in known],
                [max(0.0, row[f"{name}_hi"] - row[name]) for row in known],
            ],
            fmt=mark.marker,
            color=mark.colour,
            markersize=3.5,
            elinewidth=1.0,
            label=control,
        )
    plot_style.set_ticks(axes.xaxis, range(len(layers)), lambda index: layers[index])
    axes.set_xlim(-0.5, len(layers) - 0.5)
