"""What to mind about a fit: a sentence for every check that needs attention.

However many budgets and families a check concerns, it is one sentence; the tables hold the rest.
`isoflop fit` prints the sentences below its tables, the report lists them among its findings.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from isoflop.analysis.axes import axis_mark
from isoflop.analysis.compare.claims import claimed_note
from isoflop.analysis.compare.frontier import SLACK
from isoflop.analysis.compare.multipliers import Comparison
from isoflop.analysis.compare.one_size import has_no_shared_budget, is_one_size
from isoflop.analysis.laws import law_axes
from isoflop.analysis.optima import Optimum, Status
from isoflop.analysis.points import GroupKey
from isoflop.analysis.result import Fits
from isoflop.analysis.validity.design import (
    MAX_BUDGET_ERROR,
    MAX_OFF_CENTRE,
    achieved_ratios,
    near_sets,
    num_nearer_elsewhere,
)
from isoflop.analysis.validity.finding import Check, Finding, Validity
from isoflop.ingest.budgets import gathered
from isoflop.numbers import format_flops
from isoflop.units import NATS

# Nats per token; an untrained model has ln of its vocabulary, 12.5 at 250,000 words.
_HIGHEST_LOSS = 15.0

# Of more budgets or families than this a sentence gives the number.
_MOST_NAMED = 3

_OF_VARIANTS: Mapping[Check, str] = {
    "selection": "excluded rows let in",
    "method": "other methods of finding optima",
    "convention": "other FLOP conventions",
}
_WITHOUT_MINIMUM: Mapping[Status, str] = {
    "too_few": "too few sizes",
    "flat": "flat",
    "not_convex": "not convex",
    "below_data": "far below every loss measured",
}


def attention(fits: Fits) -> tuple[str, ...]:
    """Return a sentence per check of the fit that needs attention; none where all is well."""
    checks = fits.validity or Validity(findings=())
    of_checks: tuple[Callable[[Fits, Validity], Iterable[str]], ...] = (
        _perplexities,
        _gathered,
        _budgets,
        _achieved,
        _duplicates,
        _lacking,
        _shared_sizes,
        _unordered_sizes,
        _without_minimum,
        _bounds,
        _selected,
        _lack_of_fit,
        _unequal_noise,
        _off_centre,
        _drift,
        _held_out,
        _variants,
    )
    found = (sentence for check in of_checks for sentence in check(fits, checks))
    return (*fits.selection.notes, *found)


def claimed_notes(fits: Fits) -> list[str]:
    """Return how many multipliers along FLOPs, and how many orders by loss, are claimed."""
    confidence = fits.options.confidence
    along = [row for row in fits.compare if row.resource == "flops" and row.arch != row.reference]
    tested = [row for row in along if row.ci_lo is not None or row.order_claimed != "none"]
    claimed = sum(row.order_claimed != "none" for row in tested)
    notes = [claimed_note(claimed, len(tested), "multipliers", confidence)] if tested else []
    failed = [row for row in along if row.n_failed and row.ci_lo is None]
    if failed:
        notes.append(
            f"{len(failed)} of {len(along)} multipliers have no interval and claim nothing: half "
            f"of the draws or more lost an optimum, or the loss of {failed[0].reference} does not "
            "fall from each of its budgets to the next in them."
        )
    ranked = (fits.validity or Validity(findings=())).of("ranking")
    pairs = [f for f in ranked if f.ci_lo is not None]
    # Of two families the only pair is the multiplier's.
    if len(fits.archs) > 2 and pairs:
        ordered = sum(f.status == "ok" for f in pairs)
        notes.append(claimed_note(ordered, len(pairs), "orders of pairs by loss", confidence))
    return notes


def budgets_beyond(rows: Iterable[Comparison]) -> frozenset[float]:
    """Return the budgets of comparisons that lie beyond those of the reference's own optima."""
    along = [row for row in rows if row.resource == "flops"]
    own = [r.budget_flops for r in along if r.arch == r.reference and r.multiplier is not None]
    low, high = min(own, default=0.0), max(own, default=math.inf)
    budgets = {row.budget_flops for row in along if row.arch != row.reference}
    slack = math.exp(SLACK)
    return frozenset(b for b in budgets if not low / slack <= b <= high * slack)


def _perplexities(fits: Fits, checks: Validity) -> Iterable[str]:
    losses = [point.loss for point in fits.selection.points]
    middle = statistics.median(losses) if losses else 0.0
    if fits.unit == NATS and middle > _HIGHEST_LOSS:
        yield (
            f"The median loss is {middle:.4g}, too much for nats per token: if these are "
            "perplexities, `isoflop import --loss-unit perplexity` takes their logarithm; else say "
            "what they are by --loss-unit."
        )


def _gathered(fits: Fits, checks: Validity) -> Iterable[str]:
    loose = fits.selection.loose
    if fits.groups or not loose:
        return
    # The budget of a run without one is what it spent.
    rows = [
        {"arch": p.arch, "n_params": p.n_params, "flops": p.budget_flops, "loss": p.loss}
        for p in loose
    ]
    if clusters := gathered(rows):
        yield (
            f"No run has a budget, but FLOPs gather at {len(clusters)} values: --budgets auto "
            "takes these as budgets."
        )


def _budgets(fits: Fits, checks: Validity) -> Iterable[str]:
    found = checks.of("near_budget")
    near = _near(found, near_sets(fits)) if found else ""
    if has_no_shared_budget(fits.selection):
        # A few that are near by chance are no budgets.
        near = near if 2 * sum(f.value or 0 for f in found) >= len(fits.budgets) else ""
        yield (
            f"No two sizes of a family share a budget{f' ({near})' if near else ''}, so there are "
            "no isoFLOP profiles and no optima; the surface and the frontier over all runs need "
            "neither."
        )
    elif near:
        yield f"{near} ({found[0].detail}{' and others' if len(found) > 1 else ''})."


def _near(found: Sequence[Finding], sets: Sequence[Sequence[float]]) -> str:
    num = sum(int(f.value or 0) for f in found)
    within = max(near[-1] / near[0] - 1 for near in sets)
    are = "one" if len(sets) == 1 else str(len(sets))
    return f"{num} budgets are {are} within {100 * within:.2g}%: --round-budgets merges them"


def _achieved(fits: Fits, checks: Validity) -> Iterable[str]:
    off: dict[GroupKey, float] = {}
    elsewhere: dict[GroupKey, int] = {}
    for key in _keys(_attended(checks, "achieved_budget")):
        errors = [ratio - 1 for ratio in achieved_ratios(fits.groups[key], key[1])]
        furthest = max(errors, key=abs)
        if abs(furthest) > MAX_BUDGET_ERROR:
            off[key] = furthest
        if num := num_nearer_elsewhere(fits.groups[key], key[1], fits.budgets):
            elsewhere[key] = num
    if off:
        yield (
            f"FLOPs spent differ from the budget by more than {MAX_BUDGET_ERROR:.0%} at "
            f"{_places(off)} (up to {max(off.values(), key=abs):+.0%})."
        )
    if elsewhere:
        yield (
            f"Runs that spent what is nearer to another budget than to their own: "
            f"{sum(elsewhere.values())}, at {_places(elsewhere)}."
        )


def _duplicates(fits: Fits, checks: Validity) -> Iterable[str]:
    found = _attended(checks, "duplicate_size")
    if found:
        yield (
            f"Sizes that occur more than once with one seed count as repeats: at "
            f"{_places(_keys(found))}."
        )


def _lacking(fits: Fits, checks: Validity) -> Iterable[str]:
    axis = fits.options.axis
    num = sum(point.on(axis) is None for points in fits.groups.values() for point in points)
    if num:
        runs = "run has no" if num == 1 else "runs have no"
        yield f"{num} {runs} {axis} above 0, so that no profile along it holds them."


def _shared_sizes(fits: Fits, checks: Validity) -> Iterable[str]:
    sizes = _sizes_along(fits)
    found = [key for key, x in sizes.items() if len(set(x)) < len(x)]
    if found:
        yield (
            f"Sizes with the same {fits.options.axis} count as one, and fewer than three of them "
            f"have no optimum: at {_places(found)}."
        )


def _unordered_sizes(fits: Fits, checks: Validity) -> Iterable[str]:
    found = []
    for key, x in _sizes_along(fits).items():
        rises = [high > low for low, high in itertools.pairwise(x)]
        if len(set(x)) == len(x) and any(rises) and not all(rises):
            found.append(key)
    if found:
        yield (
            f"{fits.options.axis} neither rises nor falls with the parameters, so that profiles "
            f"mix what else sizes differ in: at {_places(found)}."
        )


def _sizes_along(fits: Fits) -> dict[GroupKey, list[float]]:
    """Return the count of each size by ascending parameters, of an axis that may differ in kind."""
    axis = fits.options.axis
    if axis in ("n_params", "n_tokens"):
        return {}
    of_groups = {}
    for key, points in fits.groups.items():
        known = {p.size_key: x for p in points if (x := p.on(axis)) is not None}
        of_groups[key] = list(known.values())
    return of_groups


def _without_minimum(fits: Fits, checks: Validity) -> Iterable[str]:
    if is_one_size(fits.selection):
        return
    kinds = {
        words: [_key(o) for o in _optima(fits) if o.status == status]
        for status, words in _WITHOUT_MINIMUM.items()
    }
    parts = [f"{words} at {_places(keys)}" for words, keys in kinds.items() if keys]
    if parts:
        yield f"No minimum of the isoFLOP curve: {'; '.join(parts)}."


def _bounds(fits: Fits, checks: Validity) -> Iterable[str]:
    keys = [_key(o) for o in _optima(fits) if o.is_bound]
    if keys:
        what = "1 optimum is a bound" if len(keys) == 1 else f"{len(keys)} optima are bounds"
        yield (
            f"{what} (< or >): the minimum lies beyond the sizes that were run at "
            f"{_places(keys)}; `isoflop refine` proposes more of them."
        )


def _selected(fits: Fits, checks: Validity) -> Iterable[str]:
    found = _attended(checks, "selected_optima")
    if found:
        each = [f"{f.arch} {f.variant}" for f in found]
        yield (
            "Laws leave out optima at edges and have those next to them that noise kept inside: "
            f"this biases exponents by little, {_listed(each)}."
        )


def _lack_of_fit(fits: Fits, checks: Validity) -> Iterable[str]:
    found = _attended(checks, "lack_of_fit")
    if found:
        yield (
            f"Sizes scatter about the curve by more than repeats of one cell explain (F test, all "
            f"budgets counted): at {_places(_keys(found))}."
        )


def _unequal_noise(fits: Fits, checks: Validity) -> Iterable[str]:
    found = _attended(checks, "unequal_noise")
    if found:
        each = [f"{f.variant} (p = {f.value or 0.0:.2g})" for f in found]
        yield (
            f"Families or budgets do not scatter alike {_joined(each)}, by Bartlett's test; "
            "intervals take the noise of each."
        )


def _off_centre(fits: Fits, checks: Validity) -> Iterable[str]:
    found = [f for f in _attended(checks, "off_centre") if f.budget_flops is not None]
    if found:
        yield (
            f"Optima nearer to an end of their grid than to its centre (beyond "
            f"{MAX_OFF_CENTRE:.0%} of the way): at {_places(_keys(found))}."
        )


def _drift(fits: Fits, checks: Validity) -> Iterable[str]:
    found = [f for f in _attended(checks, "off_centre") if f.budget_flops is None]
    if found:
        each = [f"{f.arch} {f.value:+.2f}" for f in found]
        yield (
            "Optima wander through their grids as budgets grow, which biases the exponents: "
            f"{_listed(each)} of the half grid per decade."
        )


def _held_out(fits: Fits, checks: Validity) -> Iterable[str]:
    found = _attended(checks, "held_out")
    if not found:
        return
    furthest = max(found, key=lambda f: abs(f.value or 0.0))
    counts = []
    for axis in law_axes(o.axis for o in fits.optima):
        scored = [f for f in checks.of("held_out") if f.axis == axis and f.ci_lo is not None]
        missed = sum(f.status == "attention" for f in scored)
        counts += [f"{axis_mark(axis)} {missed} of {len(scored)}"] * bool(missed)
    yield (
        "Budgets held out, predicted by the laws of the smaller ones, are missed by more than "
        f"chance allows: {_joined(counts)} (furthest: {axis_mark(furthest.axis or 'loss')} of "
        f"{furthest.arch} at {format_flops(furthest.budget_flops or 0.0)}, "
        f"{furthest.value or 0.0:+.2%})."
    )


def _variants(fits: Fits, checks: Validity) -> Iterable[str]:
    parts = []
    for check, words in _OF_VARIANTS.items():
        varied = [f for f in checks.varied if f.check == check]
        moved = sum(f.status == "moves" for f in varied)
        if moved:
            parts.append(f"{words} ({moved} of {len(varied)})")
    if parts:
        yield (
            "Answers leave their interval, or a claimed order turns round, by "
            f"{', '.join(parts)}: see Validity in the report."
        )


def _attended(checks: Validity, check: Check) -> list[Finding]:
    return [f for f in checks.of(check) if f.status == "attention"]


def _optima(fits: Fits) -> list[Optimum]:
    return list(fits.optima_by_group("n_params").values())


def _key(optimum: Optimum) -> GroupKey:
    return optimum.arch, optimum.budget_flops


def _keys(findings: Iterable[Finding]) -> list[GroupKey]:
    return [(f.arch, f.budget_flops) for f in findings if f.arch and f.budget_flops]


def _places(keys: Iterable[GroupKey]) -> str:
    """Return where: "1e17 and 3e17 of mlp", "12 budgets of mlp"; of many families their number."""
    budgets: dict[str, list[float]] = {}
    for arch, budget in keys:
        budgets.setdefault(arch, []).append(budget)
    return _listed([f"{_listed_budgets(found)} of {arch}" for arch, found in budgets.items()])


def _listed_budgets(budgets: Sequence[float]) -> str:
    if len(budgets) > _MOST_NAMED:
        return f"{len(budgets)} budgets"
    return _joined([format_flops(budget) for budget in budgets])


def _listed(each: Sequence[str]) -> str:
    if len(each) <= _MOST_NAMED:
        return _joined(each)
    rest = len(each) - _MOST_NAMED + 1
    return _joined([*each[: _MOST_NAMED - 1], f"{rest} more families"])


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
