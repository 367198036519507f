"""The Markdown tables of coverage.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coverage import Count, Rate, Tally

LEAST, MOST = 0.93, 0.97
LEAST_EXTRAPOLATED = 0.92
MOST_FALSE = 0.06
MOST_MISSING = 0.05
MOST_BAD_STUDIES = 0.05
"""Of ugly studies that may end in a false claim."""

OPTIMA = ("ln N*", "ln D*", "L*", "exponent of N*", "exponent of D*", "exponent of L*")
POWER = 0.8


def markdown(tallies: Sequence[Tally], hostile: Sequence[dict[str, Any]]) -> str:
    """Return the tables of all cases measured, those without a case left out."""
    kinds = {kind: [t for t in tallies if t.case.kind == kind] for kind in _KINDS}
    parts = [_summary(kinds["coverage"])] if kinds["coverage"] else []
    parts += [part for kind, table in _KINDS.items() if kinds[kind] for part in table(kinds[kind])]
    if hostile:
        parts.append(_hostile(hostile))
    return "\n".join(parts)


def coverage_mark(
    count: Count, least: float = LEAST, most: float = MOST, *, may_miss: bool = False
) -> str:
    """Return "", "~" or "!", and "?" with too many missing intervals."""
    total = count.known + count.missing
    lost = "?" if total and count.missing > MOST_MISSING * total and not may_miss else ""
    if count.coverage is None:
        return lost
    off = max(least - count.coverage, count.coverage - most)
    return _mark(off, count.standard_error) + lost


def rate_mark(rate: Rate, most: float = MOST_FALSE) -> str:
    """Return "", "~" or "!"."""
    if rate.rate is None:
        return ""
    # At the rate that is allowed, so that none of few is no proof.
    return _mark(rate.rate - most, (most * (1 - most) / rate.of) ** 0.5)


def _mark(off: float, standard_error: float) -> str:
    if off <= 1e-12:
        return ""
    return "~" if off < 2 * standard_error else "!"


def _cell(count: Count, mark: str) -> str:
    """Coverage in per cent and mean width; the share missing where there are any."""
    total = count.known + count.missing
    if not total:
        return ""
    missing = f" ({100 * count.missing / total:.0f} % missing)" if count.missing else ""
    if count.coverage is None:
        return f"none{missing}{mark}"
    return f"{100 * count.coverage:.1f}{mark} / {count.width / count.known:.3g}{missing}"


def _share(rate: Rate, mark: str = "") -> str:
    return "" if rate.rate is None else f"{100 * rate.rate:.1f}{mark}"


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"**{title}**", "", _line(head), "|" + "---|" * len(head)]
    return "\n".join([*lines, *(_line(row) for row in rows), ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _verdict(marks: Iterable[str]) -> str:
    joined = "".join(marks)
    if "!" in joined:
        return "no"
    return "no: missing" if "?" in joined else "about" if "~" in joined else "yes"


def _summary(tallies: Sequence[Tally]) -> str:
    """Return the table in short: a row for each name, all true multipliers together."""
    names: dict[str, list[Tally]] = {}
    for tally in tallies:
        names.setdefault(tally.case.name, []).append(tally)
    rows = []
    for name, cases in names.items():
        cells = []
        for quantity in SHORT:
            known = [case.count(quantity) for case in cases]
            total = sum(count.known for count in known)
            hits = sum(count.hits for count in known)
            lost = sum(count.missing for count in known) / max(total, 1)
            missing = f" ({100 * lost:.0f} % missing)" if lost > MOST_MISSING else ""
            cells.append(f"{100 * hits / total:.1f}{missing}" if total else "")
        equal = [case for case in cases if case.case.others[0].m == 1]
        false = [_share(case.rate("false order in a study")) for case in equal]
        rows.append([name, *cells, *false])
    head = ["case", *SHORT, "false order in a study"]
    return _table("In short: coverage of 95 % intervals, %, all true multipliers", head, rows)


SHORT = (
    "ln N*",
    "L*",
    "exponent of N*",
    "exponent of L*",
    "ln m interpolated",
    "ln m extrapolated",
)


def _coverage(tallies: Sequence[Tally]) -> list[str]:
    rows = []
    for tally in tallies:
        counts = [tally.count(name) for name in OPTIMA]
        # The smallest budget is where noise that falls is largest.
        smallest = min(tally.case.reference.budgets)
        counts += [tally.count(name, budget=smallest) for name in ("ln N*", "L*")]
        marks = [coverage_mark(count) for count in counts]
        cells = [_cell(count, mark) for count, mark in zip(counts, marks, strict=True)]
        rows.append([tally.case.title, *cells, _left_out(tally), _verdict(marks)])
    head = ["case", *OPTIMA, "ln N*, smallest budget", "L*, smallest budget", "rows left out"]
    parts = [_table("Optima and laws: coverage, % / mean width", [*head, "holds"], rows)]
    rows = []
    for tally in tallies:
        inner, outer, joint = (tally.count(f"ln m {name}") for name in _WHERE)
        marks = [
            coverage_mark(inner),
            coverage_mark(outer, LEAST_EXTRAPOLATED, 1.0, may_miss=True),
        ]
        false = [tally.rate(name) for name in _FALSE]
        rows.append(
            [
                tally.case.title,
                *(_cell(count, mark) for count, mark in zip((inner, outer), marks, strict=True)),
                _share(tally.rate("all simultaneous intervals hold")),
                _cell(joint, ""),
                *(_share(rate, rate_mark(rate)) for rate in false),
                _share(tally.rate("claim")),
                _verdict([*marks, *(rate_mark(rate) for rate in false)]),
            ]
        )
    head = ["case", "interpolated", "extrapolated", "simultaneous, all hold", "simultaneous, each"]
    head += ["false orders, %", "any in a study, %", "orders claimed, %", "holds"]
    return [*parts, _table("Multipliers: coverage of ln m, % / mean width", head, rows)]


_WHERE = ("interpolated", "extrapolated", "simultaneous")
_FALSE = ("false order", "false order in a study")


def _left_out(tally: Tally) -> str:
    total = sum(tally.reasons.values())
    return f"{100 * total / tally.num_rows:.1f} %" if total else "0"


def _order(tallies: Sequence[Tally]) -> list[str]:
    names = [
        "false order",
        "false order in a study",
        "false order in a study, any resource",
        "false order in a study, any pair",
    ]
    own = ["false by its own interval", "false by its own interval in a study"]
    rows = []
    for tally in tallies:
        rates = [tally.rate(name) for name in names]
        marks = [rate_mark(rate) for rate in rates]
        rows.append(
            [
                tally.case.title,
                *(_share(rate, mark) for rate, mark in zip(rates, marks, strict=True)),
                *(_share(tally.rate(name)) for name in own),
                _share(tally.rate("all simultaneous intervals hold")),
                _statuses(tally),
                _verdict(marks),
            ]
        )
    head = ["case", "a multiplier", "any in a study", "any, any resource", "any pair"]
    head += ["single intervals: each", "any", "simultaneous: all hold", "optima", "holds"]
    return [_table("Equal families: false orders along FLOPs, %", head, rows)]


def _statuses(tally: Tally) -> str:
    total = sum(tally.statuses.values())
    return ", ".join(f"{100 * n / total:.0f} % {s}" for s, n in tally.statuses.most_common())


def _beyond(tallies: Sequence[Tally]) -> list[str]:
    rows = []
    for tally in tallies:
        claims = tally.rate("claim")
        outer = tally.count("ln m extrapolated")
        marks = [
            "!" if claims.times else "",
            coverage_mark(outer, LEAST_EXTRAPOLATED, 1.0, may_miss=True),
        ]
        rows.append(
            [tally.case.title, _share(claims, marks[0]), _cell(outer, marks[1]), _verdict(marks)]
        )
    head = ["case", "orders claimed, %", "ln m shown: coverage / width", "holds"]
    return [_table("Beyond the reference's budgets", head, rows)]


def _ugly(tallies: Sequence[Tally]) -> list[str]:
    rows = []
    for tally in tallies:
        false, named = tally.rate("false order in a study"), tally.rate("named")
        marks = [
            rate_mark(false, MOST_BAD_STUDIES),
            "!" if named.rate is not None and named.rate < 1 - MOST_BAD_STUDIES else "",
        ]
        rows.append(
            [
                tally.case.title,
                _share(false, marks[0]),
                _share(named, marks[1]),
                _share(tally.rate("wrong row left out")),
                _left_out(tally),
                *(_cell(c, coverage_mark(c)) for c in map(tally.count, ("ln N*", "L*"))),
                _statuses(tally),
                _verdict(marks),
            ]
        )
    head = ["case", "studies with a false order, %", "named, %", "wrong rows left out, %"]
    head += ["rows left out", "ln N*", "L*", "optima", "holds"]
    return [_table("Tables with mistakes, equal families", head, rows)]


def _power(tallies: Sequence[Tally]) -> list[str]:
    names: dict[str, list[Tally]] = {}
    for tally in tallies:
        names.setdefault(tally.case.name, []).append(tally)
    rows = []
    for name, cases in names.items():
        single, claimed = (
            smallest_found(cases, rate) for rate in ("found by its own interval", "found")
        )
        price = "" if single is None or claimed is None else f"{claimed / single:.2f}"
        shown = ["beyond the grid" if v is None else f"{v:.4f}" for v in (single, claimed)]
        false = [t.rate("false order in a study") for t in cases]
        share = sum(r.times for r in false) / max(sum(r.of for r in false), 1)
        is_dear = price and float(price) > MOST_PRICE
        rows.append([name, *shown, price, f"{100 * share:.1f}", "no" if is_dear else "yes"])
    head = ["case", "ln m, single", "ln m, claimed", "price", "false orders in a study, %", "holds"]
    return [_table("Power: smallest ln m found in 80 % of multipliers", head, rows)]


MOST_PRICE = 1.35


def smallest_found(tallies: Sequence[Tally], rate: str) -> float | None:
    """Return the ln m at which the share found reaches 80 %, between those simulated."""
    shares = sorted(
        (math.log(max(f.m for f in tally.case.others)), tally.rate(rate).rate or 0.0)
        for tally in tallies
    )
    for (low, below), (high, above) in itertools.pairwise(shares):
        if below < POWER <= above:
            return low + (high - low) * (POWER - below) / (above - below)
    return None


def widths(tallies: Sequence[Tally], before: Sequence[dict[str, Any]]) -> str:
    """Return a table of mean widths over those before, of the same studies and quantities.

    Where the intervals before covered 93 % or more; `before` are the cases of an `--out` file.
    """
    known = {(case["name"], case["label"]): case["counts"] for case in before}
    rows = []
    for tally in tallies:
        cells, is_wider = [], False
        for name in WIDTHS:
            now, then = tally.count(name), None
            for count in known.get((tally.case.name, tally.case.label), ()):
                if (count["quantity"], count["arch"], count["budget"]) == (name, "", None):
                    then = count
            if then is None or not now.known or (then["coverage"] or 0) < LEAST:
                cells.append("")
                continue
            ratio = now.width / now.known / then["mean_width"]
            mark = "!" if ratio > MOST_WIDER else ""
            is_wider = is_wider or bool(mark)
            cells.append(f"{ratio:.2f}{mark}")
        if any(cells):
            rows.append([tally.case.title, *cells, "no" if is_wider else "yes"])
    title = "Widths over those before, where those covered"
    return _table(title, ["case", *WIDTHS, "holds"], rows)


MOST_WIDER = 1.1
WIDTHS = ("ln N*", "L*", "exponent of N*", "exponent of L*", "ln m interpolated")


def _hostile(verdicts: Sequence[dict[str, Any]]) -> str:
    rows = [
        [v["table"], v["end"], str(v["claims"]), v["says"].replace("|", "/").replace("\n", " ")]
        for v in verdicts
    ]
    return _table("Hostile tables, equal families", ["table", "end", "claims", "says"], rows)


_KINDS = {
    "coverage": _coverage,
    "order": _order,
    "beyond": _beyond,
    "ugly": _ugly,
    "power": _power,
}
