"""Figures of the geometry of gates, the use of experts and what interventions did.

Letters: L layers, C channels, E experts a channel chooses from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop import plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_SPACES = ("gates", "residual", "embedding", "untrained", "shuffled", "chance")
_POOL_TITLES = {
    "any": "all tokens",
    "different_token": "other tokens only",
    "same_token": "same token only",
}
_LABEL_TITLES = {"word_class": "word class", "next_token": "next token"}
_OTHER_COLOUR = "#BBBBBB"
OVER_TRAINING = {
    "entropy": "entropy of a step / log(experts)",
    "ever_used": "share of experts used so far",
}
"""Figures of the training that are drawn, and their labels."""
_HEIGHT = 2.2
_EFFECTS_STEM = "interventions"
_EFFECT_PANELS = {
    "nie": "Normalised indirect effect",
    "answers_cf": "Share answering counterfactually",
}
_EFFECTS_HEIGHT = 2.9
# Of the space between two sets of layers, what the marks of one take.
_SPREAD = 0.6


def save_figure(figure: Figure, folder: Path, stem: str) -> tuple[Path, ...]:
    """Write STEM.png and STEM.svg."""
    with plot_style.style():
        return plot_style.save(figure, folder, stem)


def _axes(rows: int, columns: int, height: float) -> tuple[Figure, NDArray[Any]]:
    figure = plot_style.new_figure(plot_style.PAGE_WIDTH, height)
    return figure, figure.subplots(rows, columns, squeeze=False)


def purity_figure(purities: Sequence[dict[str, Any]]) -> Figure:
    """Return purity by layer, of gates and controls, with intervals over documents."""
    labels = [label for label in _LABEL_TITLES if any(row["label"] == label for row in purities)]
    with plot_style.style():
        figure, axes = _axes(len(labels), len(_POOL_TITLES), _HEIGHT * len(labels) + 0.4)
        for i, label in enumerate(labels):
            for j, (pool, title) in enumerate(_POOL_TITLES.items()):
                mine = [r for r in purities if (r["label"], r["pool"]) == (label, pool)]
                _purity_panel(axes[i, j], mine)
                axes[i, j].set_title(f"{_LABEL_TITLES[label]}, {title}")
            axes[i, 0].set_ylabel("share of near tokens\nwith the same label")
        for ax in axes[-1]:
            ax.set_xlabel("layer")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def _purity_panel(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for index, space in enumerate(_SPACES):
        mark = plot_style.family_mark(index)
        found = [row for row in rows if row["space"] == space and row["purity"] is not None]
        points = sorted((r for r in found if r["layer"] is not None), key=lambda r: r["layer"])
        if not points:
            continue
        value = np.array([row["purity"] for row in points])
        # Rounding can put a value a hair outside its interval.
        below = np.maximum(value - [row["ci_lo"] for row in points], 0.0)
        above = np.maximum([row["ci_hi"] for row in points] - value, 0.0)
        # Apart by a little, so that intervals do not hide one another.
        shift = (index - len(_SPACES) / 2) * 0.04
        axes.errorbar(
            [row["layer"] + shift for row in points],
            value,
            yerr=np.stack([below, above]),
            color=mark.colour,
            marker=mark.marker,
            ls=mark.line,
            ms=3.5,
            lw=1.0,
            label=space,
        )
    _layer_ticks(axes, [row["layer"] for row in rows if row["layer"] is not None])
    axes.set_ylim(-0.03, 1.03)


def _layer_ticks(axes: Axes, layers: Sequence[int]) -> None:
    last = max(layers, default=0)
    axes.set_xlim(-0.4, last + 0.4)
    axes.set_xticks(range(0, last + 1, max(1, last // 8)))


def cka_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Return CKA to the input embeddings by layer, all channels of it, with what chance gives."""
    with plot_style.style():
        figure, axes = _axes(1, 1, _HEIGHT + 0.3)
        for index, model in enumerate(("trained", "untrained")):
            mark = plot_style.family_mark(index)
            mine = [r for r in rows if r["model"] == model and r["channel"] is None]
            # Of one channel, that channel is the layer.
            mine = mine or [r for r in rows if r["model"] == model]
            for key, line, name in (("cka", "-", model), ("shuffled_hi", ":", None)):
                known = [row for row in mine if row[key] is not None]
                axes[0, 0].plot(
                    [row["layer"] for row in known],
                    [row[key] for row in known],
                    color=mark.colour,
                    marker=mark.marker if name else "",
                    ls=line,
                    ms=4,
                    label=name or f"{model}, rows shuffled (95th percentile)",
                )
        _layer_ticks(axes[0, 0], [row["layer"] for row in rows])
        axes[0, 0].set(xlabel="layer", ylabel="linear CKA of gates\nand input embeddings")
        axes[0, 0].set_ylim(0, 1.03)
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def points_figure(points: Sequence[dict[str, Any]], method: str) -> Figure:
    """Return each layer's two-dimensional embedding, coloured by the commonest word classes."""
    layers = sorted({row["layer"] for row in points if row["layer"] is not None})
    classes = [name for name, _ in Counter(r["word_class"] for r in points).most_common()]
    columns = min(4, len(layers))
    num_rows = -(-len(layers) // columns)
    with plot_style.style():
        figure, axes = _axes(num_rows, columns, plot_style.PAGE_WIDTH / columns * num_rows + 0.5)
        for ax, layer in zip(axes.flat, layers, strict=False):
            _scatter(ax, [row for row in points if row["layer"] == layer], classes)
            ax.set_title(f"layer {layer} ({method})")
        for ax in axes.flat[len(layers) :]:
            ax.set_axis_off()
        handles, names = axes.flat[0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=5, frameon=False, markerscale=2.5
        )
    return figure


def _scatter(axes: Axes, points: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    shown = len(plot_style.family_colours())
    for index, name in enumerate([*classes[:shown], "other classes"]):
        names = classes[shown:] if index == shown else [name]
        mine = [row for row in points if row["word_class"] in names]
        if not mine:
            continue
        mark = plot_style.family_mark(index)
        axes.scatter(
            [row["x"] for row in mine],
            [row["y"] for row in mine],
            s=4,
            color=_OTHER_COLOUR if index == shown else mark.colour,
            marker=mark.marker,
            lw=0,
            alpha=0.7,
            label=name,
        )
    axes.set_xticks([])
    axes.set_yticks([])


def usage_figure(
    counts_LCE: NDArray[np.int64],
    layers: Sequence[int],
    training: Mapping[str, Mapping[int, Sequence[tuple[int, float]]]] | None,
) -> Figure:
    """Return how evenly each layer uses its experts, and how that came about in training.

    Args:
        counts_LCE: how often each expert was chosen.
        layers: those to draw.
        training: by the names of :data:`OVER_TRAINING`, the (step, figure) of each layer; None: no
            such panels.
    """
    with plot_style.style():
        figure, axes = _axes(1, 1 if training is None else 3, _HEIGHT + 0.4)
        for layer in layers:
            _ranked(axes[0, 0], counts_LCE[layer].ravel(), layer)
        axes[0, 0].set(xlabel="share of experts, most used first", ylabel="choices / even share")
        axes[0, 0].set_yscale("symlog", linthresh=0.1)
        for ax, (name, text) in zip(axes[0, 1:], OVER_TRAINING.items(), strict=False):
            _over_steps(ax, (training or {})[name])
            ax.set_ylabel(text)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False)
    return figure


def _ranked(axes: Axes, counts_E: NDArray[np.int64], layer: int) -> None:
    mark = plot_style.family_mark(layer)
    share = np.sort(counts_E)[::-1] / max(counts_E.mean(), 1e-300)
    place = (np.arange(len(share)) + 0.5) / len(share)
    axes.plot(place, share, color=mark.colour, ls=mark.line, lw=1.0, label=f"layer {layer}")


def _over_steps(axes: Axes, by_layer: Mapping[int, Sequence[tuple[int, float]]]) -> None:
    for layer, points in by_layer.items():
        mark = plot_style.family_mark(layer)
        axes.plot(*zip(*points, strict=True), color=mark.colour, ls=mark.line, lw=1.0)
    axes.set_xlabel("step")
    axes.set_ylim(0, 1.03)


def draw_effects(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each control's effect with its interval; rows of isoflop.interpret.effects.EFFECTS."""
    figure = plot_style.new_figure(plot_style.PAGE_WIDTH, _EFFECTS_HEIGHT)
    panels = figure.subplots(1, len(_EFFECT_PANELS), sharex=True)
    for axes, (name, label) in zip(panels, _EFFECT_PANELS.items(), strict=True):
        _effect_panel(axes, rows, name)
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
        return plot_style.save(draw_effects(rows), folder, _EFFECTS_STEM)


def _effect_panel(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str) -> None:
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
