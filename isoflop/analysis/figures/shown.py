"""What a figure shows: families and budgets in their order, and the look of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from isoflop import plot_style, plot_texts
from isoflop.analysis.points import GroupKey, Point
from isoflop.analysis.result import Fits
from isoflop.errors import UserError
from isoflop.numbers import format_flops
from isoflop.plot_style import Mark

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap

Hue = Literal["arch", "budget"]
"""What colours tell apart."""
Palette = Mapping[Any, Any] | Sequence[Any] | str
"""Colours by label, a list of them, or a colormap: its name, or matplotlib's own object."""

MOST_FAMILIES = 11
"""Of one page."""
MOST_LISTED = 6
"""Budgets that a legend lists; of more a colour bar tells."""
# Budgets that a person types agree with the table's to so much.
_LIKENESS = 1e-6

LOOSE = 0.0
"""Stands for the budget of runs that have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What is drawn alike."""

    mark: Mark
    label: str | None
    """Of a legend; None: another has it."""
    members: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """The families and budgets of a figure, and what tells them apart."""

    archs: tuple[str, ...]
    budgets: tuple[float, ...]
    hue: Hue
    shape: Hue
    """What markers and lines tell apart."""
    colours: Mapping[str | float, Any]
    """By what the hue is of: family or budget."""
    places: Mapping[str | float, int]
    """Of a family or budget among those of the table: chooses its marker, in every figure."""
    scale: ScalarMappable | None
    """Of the colour bar; None where a legend lists the colours."""
    is_cut: bool
    """Whether families are left out that nobody asked to leave out, for there are too many."""

    def mark(self, arch: str, budget: float) -> Mark:
        """Return the look of a family's runs at a budget."""
        of: dict[Hue, str | float] = {"arch": arch, "budget": budget}
        # A run without a budget has no colour among theirs.
        colour = self.colours.get(of[self.hue], plot_style.grey())
        if self.shape == "budget":
            # A colour bar shows no markers.
            place = 0 if self.scale is not None else self.places.get(budget, 0)
            return Mark(colour=colour, marker=plot_style.marker(place), line="-")
        place = self.places[arch]
        return Mark(colour=colour, marker=plot_style.marker(place), line=plot_style.line(place))

    def groups(self, fits: Fits) -> dict[GroupKey, tuple[Point, ...]]:
        """Return the points that are shown by (arch, budget), in order."""
        keys = ((arch, budget) for arch in self.archs for budget in self.budgets)
        return {key: fits.groups[key] for key in keys if key in fits.groups}

    def grouped(self, found: Iterable[tuple[GroupKey, Any]]) -> list[Look]:
        """Return what has one look together, families and budgets in their order.

        The first of a label carries it, so that legends have it once. Other families are left out.
        """
        by_budget = "budget" in (self.hue, self.shape)
        members: dict[GroupKey, list[Any]] = {}
        for (arch, budget), member in found:
            if arch in self.archs:
                members.setdefault((arch, budget if by_budget else LOOSE), []).append(member)
        looks: list[Look] = []
        labels: set[str] = set()
        for key in sorted(members, key=lambda key: (self.archs.index(key[0]), key[1])):
            label = self.label(*key)
            name = None if label in labels else label
            looks.append(Look(mark=self.mark(*key), label=name, members=tuple(members[key])))
            labels.add(label)
        return looks

    def label(self, arch: str, budget: float) -> str:
        """Return what a legend calls the colour of a family's runs at a budget."""
        if self.hue == "arch":
            return plot_texts.literal(arch)
        return "no budget" if budget == LOOSE else budget_label(budget)


def budget_label(budget: float) -> str:
    """Return a budget as a legend has it; budgets of a design are round numbers."""
    return f"{plot_style.math_flops(budget, 3)} FLOPs"


def budget_title(budget: float) -> str:
    """Return a budget for the title of a panel, the number as bold as the word after it."""
    label = budget_label(budget)
    if not plot_style.is_bold("axes.titleweight"):
        return label
    _, number, rest = label.split("$")
    return rf"$\mathbf{{{number}}}${rest}"


def show(
    fits: Fits,
    *,
    archs: Sequence[str] | str | None = None,
    budgets: Sequence[float] | float | None = None,
    hue: str | None = None,
    palette: Palette | None = None,
    default: Hue = "arch",
    shape: Hue = "arch",
    most: int | None = None,
    with_loose: bool = False,
) -> Shown:
    """Return what a figure shows.

    Args:
        fits: what was fitted.
        archs: families in the order wanted; None: those of the table.
        budgets: in FLOPs, in the order wanted; None: those of the table.
        hue: what colours tell apart, "arch" or "budget"; None: the default.
        palette: colours by label, a list of them in the order of what is shown, or the name of a
            colormap; None: those of `axes.prop_cycle` for families, light to dark for budgets.
        default: the hue where none is asked for.
        shape: what markers and lines tell apart.
        most: families that are shown where none are asked for, the reference among them.
        with_loose: whether families of which no run has a budget are shown.

    Raises:
        UserError: a family, budget, hue, colour or colormap is not known.
    """
    if hue not in (None, *get_args(Hue)):
        raise UserError("hue", hue, "arch or budget", "name what colours tell apart")
    loose = sorted({point.arch for point in fits.selection.loose} - set(fits.archs))
    known = [*fits.archs, *loose]
    drawable = known if with_loose else fits.archs
    chosen = _archs(fits, drawable, archs, most)
    at = _budgets(fits.budgets, budgets)
    kind: Hue = default if hue is None else "arch" if hue == "arch" else "budget"
    places: dict[str | float, int] = {arch: i for i, arch in enumerate(known)}
    places |= {budget: i for i, budget in enumerate(fits.budgets)}
    scale = None
    colours: dict[str | float, Any]
    if kind == "arch":
        colours = label_colours(chosen, places, palette)
    else:
        colours, scale = _budget_colours(at, palette)
    return Shown(
        archs=chosen,
        budgets=at,
        hue=kind,
        shape=shape,
        colours=colours,
        places=places,
        scale=scale,
        is_cut=archs is None and len(chosen) < len(drawable),
    )


def _archs(
    fits: Fits, known: Sequence[str], asked: Sequence[str] | str | None, most: int | None
) -> tuple[str, ...]:
    if asked is None:
        if most is None or len(known) <= most:
            return tuple(known)
        others = [arch for arch in known if arch != fits.reference][: most - 1]
        return tuple(arch for arch in known if arch == fits.reference or arch in others)
    names = list(dict.fromkeys([asked] if isinstance(asked, str) else asked))
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None or not names:
        there = ", ".join(known) or "an arch (the table has none)"
        value = list(names) if unknown is None else unknown
        raise UserError("archs", value, f"of {there}", "name families of the table")
    return tuple(names)


def _budgets(known: Sequence[float], asked: Sequence[float] | float | None) -> tuple[float, ...]:
    if asked is None:
        return tuple(known)
    found: dict[float, None] = {}
    wanted = [asked] if isinstance(asked, int | float | str) else list(asked)
    for value in wanted:
        found[_budget(known, value)] = None
    if not found:
        raise _unknown_budget(known, wanted)
    return tuple(found)


def _budget(known: Sequence[float], value: Any) -> float:
    """Return the budget of the table that is meant."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _unknown_budget(known, value) from None
    for budget in known:
        if math.isclose(budget, number, rel_tol=_LIKENESS):
            return budget
    raise _unknown_budget(known, value)


def _unknown_budget(known: Sequence[float], value: object) -> UserError:
    there = ", ".join(format_flops(budget) for budget in known) or "a budget (the table has none)"
    return UserError("budgets", value, f"of {there}", "name budgets of the table, in FLOPs")


def label_colours(
    labels: Sequence[str], places: Mapping[Any, int], palette: Palette | None
) -> dict[Any, Any]:
    """Return a colour for each label: of the cycle by its place, or of a palette in their order."""
    if palette is None:
        cycle = plot_style.cycle()
        return {label: cycle[places[label] % len(cycle)] for label in labels}
    if _is_colormap(palette):
        colormap = _colormap(palette)
        listed = getattr(colormap, "colors", None)
        if listed is not None and len(listed) < 100:
            return {label: tuple(listed[i % len(listed)]) for i, label in enumerate(labels)}
        return {label: colormap((i + 0.5) / len(labels)) for i, label in enumerate(labels)}
    return {label: _colour(palette, i, label, label) for i, label in enumerate(labels)}


def _budget_colours(
    budgets: Sequence[float], palette: Palette | None
) -> tuple[dict[str | float, Any], ScalarMappable | None]:
    """Return the colours, and their scale where they are too many for a legend."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    if palette is not None and not _is_colormap(palette):
        names = [format_flops(budget) for budget in budgets]
        return {b: _colour(palette, i, b, names[i]) for i, b in enumerate(budgets)}, None
    colormap = plot_style.budget_colours() if palette is None else _colormap(palette)
    if len(budgets) > MOST_LISTED:
        low, high = min(budgets), max(budgets)
        length = math.log(high / low)
        scale = ScalarMappable(LogNorm(low, high), colormap)
        return {budget: colormap(math.log(budget / low) / length) for budget in budgets}, scale
    ordered = sorted(budgets)
    share = max(len(ordered) - 1, 1)
    # A single budget has the strongest of the colours.
    first = 1.0 if len(ordered) == 1 else 0.0
    return {budget: colormap(first + i / share) for i, budget in enumerate(ordered)}, None


def _is_colormap(palette: Any) -> bool:
    """Return whether colours are not listed: then a colormap is meant."""
    return isinstance(palette, str) or not isinstance(palette, Mapping | Iterable)


def _colormap(name: Any) -> Colormap:
    from matplotlib import colormaps
    from matplotlib.colors import Colormap

    if isinstance(name, Colormap):
        return name
    try:
        return colormaps[name]
    except (KeyError, TypeError):
        raise UserError(
            "palette",
            name,
            "the name of a colormap of matplotlib, a list of colours, or colours by label",
            "choose such as viridis or tab10",
        ) from None


def _colour(palette: Any, place: int, label: str | float, name: str) -> Any:
    """Return the colour of a label: a mapping's own, or the one of a list in its place."""
    from matplotlib.colors import is_color_like

    if isinstance(palette, Mapping):
        own = [palette[key] for key in (label, name) if key in palette]
        if not own:
            raise UserError("palette", sorted(map(str, palette)), f"a colour for {name}", "add it")
        colour = own[0]
    else:
        colours = list(palette)
        if not colours:
            raise UserError("palette", colours, "at least one colour", "add it")
        colour = colours[place % len(colours)]
    if not is_color_like(colour):
        raise UserError("palette", colour, "a colour of matplotlib", "give such as #0072B2 or red")
    return colour
