"""How often 95 % intervals hold the truth, and how often equal families are told apart.

Simulated studies (simulated_studies.py) are fitted as `isoflop fit` does, by its default method, as
far as is measured: optima, power laws, multipliers along FLOPs. The truth is the surface's, so that
the bias of a method counts against it; the truth of the exponent of L* is the least-squares slope
of the true ln L* at the budgets.

    python tests/benchmarks/coverage.py --markdown tables.md --out numbers.json
    python tests/benchmarks/coverage.py --studies 40 --cases "noise 0.002" ugly

A coverage is called right when it lies from 93 to 97 %. Intervals of one study are not independent,
so its standard error is that of the mean of studies. Marks: `~` outside, by less than twice that;
`!` outside by more; `?` more than 5 % of the intervals are missing. A rate of false orders is right
up to 6 %; `~` and `!` as before.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parent))

import numpy as np
from coverage_tables import markdown, widths
from hostile_tables import hostile_verdicts
from simulated_studies import CASES, NEW, REFERENCE, Case, loss_of_optimum, optimum

from isoflop.analysis import FitOptions, Fits, fit_optima, select_points
from isoflop.analysis.compare.multipliers import Comparison, compare_archs

Interval = tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One interval of one study, beside the truth."""

    quantity: str
    arch: str
    budget: float | None
    estimate: float | None
    lo: float | None
    hi: float | None
    truth: float


@dataclass(slots=True)
class Count:
    """Intervals that hold the truth, of those there are; the others are missing."""

    hits: int = 0
    known: int = 0
    missing: int = 0
    width: float = 0.0
    above: int = 0
    """Intervals wholly above the truth."""
    errors: list[float] = field(default_factory=list)
    """Estimate minus truth."""
    studies: dict[int, list[int]] = field(default_factory=dict)
    """By study: hits and intervals."""

    def add(self, record: Record, study: int) -> None:
        """Count one interval."""
        if record.lo is None or record.hi is None:
            self.missing += 1
            return
        hit = record.lo <= record.truth <= record.hi
        self.known += 1
        self.hits += hit
        self.above += record.lo > record.truth
        self.width += record.hi - record.lo
        of_study = self.studies.setdefault(study, [0, 0])
        of_study[0] += hit
        of_study[1] += 1
        if record.estimate is not None:
            self.errors.append(record.estimate - record.truth)

    @property
    def coverage(self) -> float | None:
        """Share of the intervals that hold the truth."""
        return self.hits / self.known if self.known else None

    @property
    def standard_error(self) -> float:
        """Of the coverage: of a mean over studies, and no less than the binomial one of 95 %."""
        num = len(self.studies)
        if self.known == 0:
            return math.inf
        rate = self.hits / self.known
        squares = sum((hits - rate * known) ** 2 for hits, known in self.studies.values())
        clustered = math.sqrt(squares * num / max(num - 1, 1)) / self.known
        return max(clustered, math.sqrt(0.95 * 0.05 / self.known))

    def summary(self) -> dict[str, float | int | None]:
        """All that is known of it, as numbers."""
        errors = np.array(self.errors) if self.errors else np.array([math.nan])
        return {
            "hits": self.hits,
            "known": self.known,
            "missing": self.missing,
            "coverage": self.coverage,
            "standard_error": self.standard_error if self.known else None,
            "mean_width": self.width / self.known if self.known else None,
            "share_above": self.above / self.known if self.known else None,
            "bias": _finite(np.mean(errors)),
            "sd": _finite(np.std(errors)),
        }


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(slots=True)
class Rate:
    """How often something happened."""

    times: int = 0
    of: int = 0

    def add(self, happened: bool) -> None:
        """Count one."""
        self.times += happened
        self.of += 1

    @property
    def rate(self) -> float | None:
        """Share; None of nothing."""
        return self.times / self.of if self.of else None

    def summary(self) -> dict[str, float | int | None]:
        """All that is known of it, as numbers."""
        return {"times": self.times, "of": self.of, "rate": self.rate}


@dataclass(slots=True)
class Tally:
    """What all studies of one case gave."""

    case: Case
    counts: dict[tuple[str, str, float | None], Count] = field(default_factory=dict)
    """By quantity, arch ("" for all) and budget (None for all)."""
    rates: dict[str, Rate] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0

    def add(self, result: Result) -> None:
        """Count one study."""
        for record in result.records:
            for arch in {"", record.arch}:
                for budget in {None, record.budget}:
                    key = record.quantity, arch, budget
                    self.counts.setdefault(key, Count()).add(record, result.number)
        for name, happened in result.events:
            self.rates.setdefault(name, Rate()).add(happened)
        self.statuses.update(result.statuses)
        self.reasons.update(result.reasons)
        self.num_rows += result.num_rows

    def count(self, quantity: str, arch: str = "", budget: float | None = None) -> Count:
        """Return the count of a quantity; an empty one where it was not measured."""
        return self.counts.get((quantity, arch, budget), Count())

    def rate(self, name: str) -> Rate:
        """Return a rate; an empty one where nothing was counted."""
        return self.rates.get(name, Rate())

    def summary(self) -> dict[str, Any]:
        """All numbers of the case."""
        return {
            "name": self.case.name,
            "label": self.case.label,
            "kind": self.case.kind,
            "counts": [
                {"quantity": quantity, "arch": arch, "budget": budget, **count.summary()}
                for (quantity, arch, budget), count in self.counts.items()
            ],
            "rates": {name: rate.summary() for name, rate in self.rates.items()},
            "statuses": dict(self.statuses),
            "excluded": dict(self.reasons),
            "num_rows": self.num_rows,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one study gave."""

    number: int
    records: list[Record]
    events: list[tuple[str, bool]]
    statuses: list[str]
    reasons: list[str]
    num_rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How studies are fitted."""

    n_boot: int = 1000
    method: str | None = None
    """None: the package's default."""
    independent: bool = False
    """Whether runs of one trunk are taken as independent."""
    tokens: bool = True
    """Whether D* is measured where m is 1: its profile is that of N* mirrored."""


def fitted(rows: list[dict[str, Any]], case: Case, settings: Settings) -> Fits:
    """Fit what is measured, as `isoflop fit` does."""
    options = FitOptions(n_boot=settings.n_boot, reference=REFERENCE)
    if settings.method is not None:
        options = replace(options, method=settings.method)
    if settings.independent:
        rows = [row | {"flops_spent": None} for row in rows]
    selection = select_points(rows)
    if case.repeats is not None:
        options = replace(options, repeats=case.repeats)
        selection = select_points(rows, case.repeats)
    has_tokens = settings.tokens and case.kind == "coverage" and case.others[0].m == 1
    axes = ["n_params", "n_tokens"] if has_tokens else ["n_params"]
    fits = fit_optima(selection, options, methods=[options.method], axes=axes)
    compared = compare_archs(fits, None if case.all_resources else ("flops",))
    return replace(fits, compare=compared)


def result_of(case: Case, number: int, settings: Settings = Settings()) -> Result:
    """Make and fit one study."""
    study = case.study(number)
    fits = fitted(study.rows, case, settings)
    excluded = fits.excluded
    wrong = [row for row in study.rows if row["loss"] in study.spoiled]
    found = {row.loss for row in excluded} & study.spoiled
    events = [*_order_events(fits, case)]
    if case.spoil is not None:
        events.append(("named", bool(excluded)))
        events += [("wrong row left out", row["loss"] in found) for row in wrong]
    return Result(
        number=number,
        records=[*_optima(fits, case), *_laws(fits, case), *_multipliers(fits, case)],
        events=events,
        statuses=[o.status for o in fits.optima if o.axis == "n_params"],
        reasons=[row.reason for row in excluded],
        num_rows=len(study.rows),
    )


def _logs(values: Iterable[float | None]) -> Iterator[float | None]:
    for value in values:
        yield math.log(value) if value is not None and 0 < value < math.inf else None


def _optima(fits: Fits, case: Case) -> Iterator[Record]:
    names = {"n_params": "ln N*", "n_tokens": "ln D*"}
    for found in fits.optima:
        family = case.families[found.arch]
        budget = found.budget_flops
        n_params = optimum(budget, family.m)
        truth = n_params if found.axis == "n_params" else budget / (6 * n_params)
        estimate, lo, hi = _logs((found.x_opt, found.ci_lo, found.ci_hi))
        place = {"arch": found.arch, "budget": budget}
        yield Record(
            quantity=names[found.axis],
            estimate=estimate,
            lo=lo,
            hi=hi,
            truth=math.log(truth),
            **place,
        )
        if found.axis == "n_params":
            yield Record(
                quantity="L*",
                estimate=found.loss_opt,
                lo=found.loss_ci_lo,
                hi=found.loss_ci_hi,
                truth=loss_of_optimum(budget, family.m),
                **place,
            )


def _laws(fits: Fits, case: Case) -> Iterator[Record]:
    names = {"n_params": "exponent of N*", "n_tokens": "exponent of D*", "loss": "exponent of L*"}
    for law in fits.laws:
        if law.axis not in names or law.budget != "nominal":
            continue
        if law.axis == "n_tokens" and all(o.axis != "n_tokens" for o in fits.optima):
            continue
        family = case.families[law.arch]
        lo, hi = law.exponent_ci or (None, None)
        yield Record(
            quantity=names[law.axis],
            arch=law.arch,
            budget=None,
            estimate=law.exponent,
            lo=lo,
            hi=hi,
            truth=_true_exponent(law.axis, family.m, family.budgets),
        )


def _true_exponent(axis: str, m: float, budgets: Sequence[float]) -> float:
    values = {
        "n_params": [optimum(c, m) for c in budgets],
        "n_tokens": [c / optimum(c, m) for c in budgets],
        "loss": [loss_of_optimum(c, m) for c in budgets],
    }[axis]
    return float(np.polyfit(np.log(budgets), np.log(values), 1)[0])


def _compared(fits: Fits, resource: str = "flops") -> list[Comparison]:
    return [row for row in fits.compare if row.arch != REFERENCE and row.resource == resource]


def _simultaneous(row: Comparison) -> Interval:
    return getattr(row, "ci_lo_simultaneous", None), getattr(row, "ci_hi_simultaneous", None)


def _multipliers(fits: Fits, case: Case) -> Iterator[Record]:
    """Along FLOPs, as ln m; extrapolated as the table says."""
    for row in _compared(fits):
        where = "extrapolated" if row.extrapolated else "interpolated"
        truth = math.log(case.families[row.arch].m)
        estimate, lo, hi = _logs((row.multiplier, row.ci_lo, row.ci_hi))
        place = {"arch": row.arch, "budget": row.budget_flops, "truth": truth}
        yield Record(quantity=f"ln m {where}", estimate=estimate, lo=lo, hi=hi, **place)
        lo, hi = _logs(_simultaneous(row))
        yield Record(quantity="ln m simultaneous", estimate=estimate, lo=lo, hi=hi, **place)


def _order_events(fits: Fits, case: Case) -> list[tuple[str, bool]]:
    """Claims along FLOPs; false ones where the families are equal, or on the wrong side."""
    rows = _compared(fits)
    events = []
    for row in rows:
        m = case.families[row.arch].m
        events.append(("claim", row.order_claimed != "none"))
        events.append(("false order", _is_false(row.order_claimed, m)))
        events.append(("false by its own interval", _is_false(_own_order(row), m)))
        if row.arch in (NEW, f"{NEW}1") and m > 1:
            events.append(("found", row.order_claimed == "higher"))
            events.append(("found by its own interval", _own_order(row) == "higher"))
    false = [_is_false(row.order_claimed, case.families[row.arch].m) for row in rows]
    events.append(("false order in a study", any(false)))
    events.append(("claim in a study", any(row.order_claimed != "none" for row in rows)))
    own = [_is_false(_own_order(row), case.families[row.arch].m) for row in rows]
    events.append(("false by its own interval in a study", any(own)))
    sound = [_holds(row, math.log(case.families[row.arch].m)) for row in rows]
    if any(hit is not None for hit in sound):
        events.append(("all simultaneous intervals hold", all(hit is not False for hit in sound)))
    if case.all_resources:
        of_any = [
            row.order_claimed != "none"
            for row in fits.compare
            if row.arch != REFERENCE and row.status != "no_data"
        ]
        events.append(("false order in a study, any resource", any(of_any)))
        events.append(("false order in a study, any pair", _any_pair(fits)))
    return events


def _any_pair(fits: Fits) -> bool:
    """Whether any two families are told apart along FLOPs, whichever is the reference."""
    return any(
        row.order_claimed != "none"
        for arch in fits.archs
        for row in compare_archs(fits.under(reference=arch), ("flops",))
        if row.arch != arch
    )


def _own_order(row: Comparison) -> str:
    if row.ci_lo is not None and row.ci_lo > 1:
        return "higher"
    return "lower" if row.ci_hi is not None and row.ci_hi < 1 else "none"


def _is_false(order: str, m: float) -> bool:
    if order == "none":
        return False
    return (order == "higher") != (m > 1) or m == 1


def _holds(row: Comparison, truth: float) -> bool | None:
    lo, hi = _logs(_simultaneous(row))
    return None if lo is None or hi is None else lo <= truth <= hi


def _some(job: tuple[int, int, int, Settings]) -> tuple[int, list[Result]]:
    index, first, last, settings = job
    return index, [result_of(CASES[index], number, settings) for number in range(first, last)]


def chosen(words: Sequence[str]) -> list[int]:
    """Return the cases of which a kind, a name or part of a name is given; all without words."""
    return [
        index
        for index, case in enumerate(CASES)
        if not words or any(word == case.kind or word in case.title for word in words)
    ]


def measure(
    cases: Sequence[int],
    num_studies: int,
    settings: Settings = Settings(),
    jobs: int = 1,
) -> list[Tally]:
    """Make and fit the studies of some cases, in processes of their own where there are jobs."""
    tallies = {index: Tally(case=CASES[index]) for index in cases}
    parts = [
        (index, first, min(first + 10, num_studies), settings)
        for index in cases
        for first in range(0, num_studies, 10)
    ]
    with ExitStack() as stack:
        run = map
        if jobs > 1:
            # In the order of the parts, so that sums of floats do not depend on who is faster.
            run = stack.enter_context(get_context("fork").Pool(jobs)).imap
        for index, results in run(_some, parts):
            for result in results:
                tallies[index].add(result)
            if results[0].number == 0:
                print(f"{CASES[index].title} …", file=sys.stderr)
    return list(tallies.values())


def main() -> None:
    """Print the tables of all cases as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--n-boot", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cases", nargs="*", default=(), help="kinds, names or parts of names")
    parser.add_argument("--method", help="of optima; the package's default without it")
    parser.add_argument(
        "--independent", action="store_true", help="take runs of one trunk as independent"
    )
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    parser.add_argument("--before", type=Path, help="numbers of --out, whose widths are compared")
    parser.add_argument("--out", type=Path, help="write all numbers to this file, as json")
    args = parser.parse_args()
    start = time.perf_counter()
    settings = Settings(n_boot=args.n_boot, method=args.method, independent=args.independent)
    tallies = measure(chosen(args.cases), args.studies, settings, args.jobs)
    hostile = hostile_verdicts() if not args.cases or "hostile" in args.cases else []
    text = markdown(tallies, hostile)
    if args.before is not None:
        text += "\n" + widths(tallies, json.loads(args.before.read_text())["cases"])
    print(text)
    print(f"{args.studies} studies each, {time.perf_counter() - start:.0f} s")
    if args.markdown is not None:
        args.markdown.write_text(text)
    if args.out is not None:
        numbers = {"cases": [tally.summary() for tally in tallies], "hostile": hostile}
        args.out.write_text(json.dumps(numbers, indent=1, default=str))


if __name__ == "__main__":
    main()
