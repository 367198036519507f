"""Simulated studies of a known surface: clean ones, noisy ones, and what real tables look like.

Surface: the parametric fit of Besiroglu et al. 2024 (arXiv 2404.10102) to Chinchilla's data. A
family of compute multiplier m counts its parameters and tokens sqrt(m)-fold, so that its true
multiplier over a family of m = 1 is m at every budget. Sizes are geometric about the true optimum.
Needs numpy only. `CASES` are the studies of coverage.py.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658

BUDGETS = (1e17, 3e17, 1e18, 3e18)
"""Training FLOPs."""
FALLING_NOISE = dict(zip(BUDGETS, (0.0188, 0.0081, 0.0047, 0.0061), strict=True))
"""Standard deviations of ln(loss) between seeds, as results/cpu_reference measured them."""
DOUBLING = (1e17, 2e17, 4e17, 8e17)
DECAY = 0.2
"""Share of a branch's steps that are its own."""
REFERENCE, NEW = "ref", "new"

Row = dict[str, Any]
Spoil = Callable[[list[Row], np.random.Generator], list[Row]]


def loss_at(budget: float, n_params: float, m: float = 1.0) -> float:
    """The surface at C = 6ND, nats per token."""
    root = math.sqrt(m)
    n_tokens = budget / (6 * n_params)
    return E + A / (n_params * root) ** ALPHA + B / (n_tokens * root) ** BETA


def optimum(budget: float, m: float = 1.0) -> float:
    """N* of the surface at C = 6ND."""
    scale = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return scale * (budget * m / 6) ** (BETA / (ALPHA + BETA)) / math.sqrt(m)


def loss_of_optimum(budget: float, m: float = 1.0) -> float:
    """L* of the surface, nats per token."""
    return loss_at(budget, optimum(budget, m), m)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How one family was run."""

    m: float = 1.0
    budgets: tuple[float, ...] = BUDGETS
    num_sizes: int = 7
    width: float = 4.0
    """Sizes reach from N* / width to N* · width."""
    noise: float | dict[float, float] = 0.005
    """Standard deviation of ln(loss) between seeds; or by budget."""
    seeds: int | Literal["three at the optimum"] = 1
    scatter: float = 0.0
    """Standard deviation of ln(loss) between sizes, which the seeds of a size share."""
    tails: Literal["normal", "student"] = "normal"
    """student: 2 degrees of freedom, with the quartiles of the normal noise."""
    missing: float = 0.0
    """Share of runs that are not there."""
    ladder: tuple[float, ...] = ()
    """The same sizes at every budget."""
    is_flat: bool = False
    """Whether every size of a budget has the same true loss."""
    rung: float = 0.0
    """Sizes are the ``num_sizes`` nearest to N* of a ladder of this ratio, so that budgets share
    them and their runs are of one trunk; 0: each budget has its own."""
    rho: float = 0.0
    """Correlation of the noise of two runs of one trunk."""
    rho_falls: bool = False
    """Whether it is that of budgets a factor of 2 apart, its square of a factor of 4, and so on."""


_QUARTILES = 0.6745 / 0.8165
"""Of the normal distribution over Student's with 2 degrees of freedom."""


def rows_of(arch: str, family: Family, rng: np.random.Generator) -> list[Row]:
    """The runs of one family."""
    rows = []
    trunks = _TrunkNoise(family, rng)
    for budget in family.budgets:
        sd = family.noise[budget] if isinstance(family.noise, dict) else family.noise
        for i, size in enumerate(_sizes(family, budget)):
            shared = rng.normal(0, family.scatter) if family.scatter else 0.0
            at = optimum(budget, family.m) if family.is_flat else size
            for seed in range(_num_seeds(family, i)):
                noise = sd * (
                    rng.standard_t(2) * _QUARTILES
                    if family.tails == "student"
                    else trunks.draw(budget, size, seed)
                )
                row: Row = {
                    "arch": arch,
                    "budget_flops": budget,
                    "n_params": size,
                    "n_tokens": budget / (6 * size),
                    "flops": budget,
                    "loss": loss_at(budget, at, family.m) * math.exp(shared + noise),
                    "seed": seed,
                }
                if family.rung:
                    longest = max(b for b in family.budgets if size in _sizes(family, b))
                    row |= {"flops_spent": budget * (1.0 if budget == longest else DECAY)}
                if rng.random() >= family.missing:
                    rows.append(row)
    return rows


class _TrunkNoise:
    """Standard normal noise of runs, correlated along their trunks."""

    def __init__(self, family: Family, rng: np.random.Generator) -> None:
        self._family = family
        self._rng = rng
        self._last: dict[tuple[float, int], tuple[float, float]] = {}

    def draw(self, budget: float, size: float, seed: int) -> float:
        """The noise of a run; budgets come in ascending order."""
        family, fresh = self._family, float(self._rng.standard_normal())
        if not family.rho:
            return fresh
        if family.rho_falls:
            before, last = self._last.get((size, seed), (budget, 0.0))
            kept = family.rho ** math.log2(budget / before) if budget > before else 0.0
            value = kept * last + math.sqrt(1 - kept**2) * fresh
            self._last[size, seed] = (budget, value)
            return value
        _, shared = self._last.setdefault((size, seed), (budget, self._rng.standard_normal()))
        return math.sqrt(family.rho) * shared + math.sqrt(1 - family.rho) * fresh


def _sizes(family: Family, budget: float) -> tuple[float, ...]:
    if family.ladder:
        return family.ladder
    if family.rung:
        lowest = round(math.log(optimum(budget, family.m)) / math.log(family.rung))
        lowest -= family.num_sizes // 2
        return tuple(family.rung ** (lowest + i) for i in range(family.num_sizes))
    middle, last = optimum(budget, family.m), family.num_sizes - 1
    return tuple(
        middle * family.width ** (2 * i / last - 1) if last else middle
        for i in range(family.num_sizes)
    )


def _num_seeds(family: Family, index: int) -> int:
    if isinstance(family.seeds, int):
        return family.seeds
    return 3 if index == family.num_sizes // 2 else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Studies of one kind: the reference and the families compared with it."""

    name: str
    kind: Literal["coverage", "order", "beyond", "ugly", "power"]
    reference: Family
    others: tuple[Family, ...]
    spoil: Spoil | None = None
    """What happens to the table after the runs."""
    repeats: str | None = None
    """What the user says of repeated cells, `--repeats`."""
    all_resources: bool = False
    label: str = ""
    """Of the row in a table, where several cases share a name."""

    @property
    def title(self) -> str:
        """The name with what tells it from others of that name."""
        return ", ".join(filter(None, (self.name, self.label)))

    @property
    def families(self) -> dict[str, Family]:
        """By arch; the reference is `ref`."""
        if len(self.others) == 1:
            return {REFERENCE: self.reference, NEW: self.others[0]}
        return {REFERENCE: self.reference} | {
            f"{NEW}{i}": family for i, family in enumerate(self.others, start=1)
        }

    def study(self, number: int) -> Study:
        """One study; equal numbers give equal studies."""
        key = zlib.crc32(f"{self.name} {self.label}".encode())
        rng = np.random.default_rng((key, number))
        rows = [row for arch, family in self.families.items() for row in rows_of(arch, family, rng)]
        clean = {row["loss"] for row in rows}
        if self.spoil is not None:
            rows = self.spoil(rows, rng)
        spoiled = frozenset(row["loss"] for row in rows if row["loss"] not in clean)
        return Study(rows=rows, spoiled=spoiled)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A table, and the losses in it that are wrong."""

    rows: list[Row]
    spoiled: frozenset[float] = field(default_factory=frozenset)


def _largest_ends_high(budgets: tuple[float, ...]) -> Spoil:
    def spoil(rows: list[Row], rng: np.random.Generator) -> list[Row]:
        for budget in budgets:
            cells = [row for row in rows if (row["arch"], row["budget_flops"]) == (NEW, budget)]
            max(cells, key=lambda row: row["n_params"])["loss"] = 9.0 + 0.01 * rng.random()
        return rows

    return spoil


def _one_size_worse(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    for arch, budget in sorted({(row["arch"], row["budget_flops"]) for row in rows}):
        cells = [row for row in rows if (row["arch"], row["budget_flops"]) == (arch, budget)]
        cells[rng.integers(len(cells))]["loss"] *= 1.3
    return rows


def _exported_twice(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    picked = rng.choice(len(rows), 6, replace=False)
    return rows + [{**rows[i], "loss": round(rows[i]["loss"], 3)} for i in picked]


def _sweep(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    """Five learning rates a size and no seeds: larger models want lower rates.

    The middle rate is the best for the smallest size, the lowest for the largest. Taken for seeds,
    the mean of the rates puts N* too low; `new` minds a wrong rate three times as much and seems
    worse.
    """
    swept = []
    for row in rows:
        steepness = 0.03 if row["arch"] == NEW else 0.01
        place = math.log(4 * row["n_params"] / optimum(row["budget_flops"])) / math.log(16)
        for rate in (-1.4, -0.7, 0.0, 0.7, 1.4):
            factor = 1 + steepness * (rate + 1.4 * place) ** 2
            loss = row["loss"] * factor * math.exp(rng.normal(0, 0.001))
            swept.append({k: v for k, v in row.items() if k != "seed"} | {"loss": loss})
    return swept


def _with_m(case: Case, multipliers: tuple[float, ...]) -> list[Case]:
    """The case once for each multiplier of the other families."""
    return [
        replace(
            case,
            others=tuple(replace(family, m=m) for family in case.others),
            label=f"m = {m:g}",
        )
        for m in multipliers
    ]


def _pair(
    name: str,
    family: Family,
    kind: Literal["coverage", "order", "ugly"] = "coverage",
    **changes: Any,
) -> Case:
    return Case(name=name, kind=kind, reference=family, others=(family,), **changes)


ALL_M = (1.0, 1.3, 2.0, 4.0)
TWO_M = (1.0, 2.0)


def _coverage_cases() -> list[Case]:
    clean = [
        (f"noise {noise:g}, {seeds} seed{'s' if seeds > 1 else ''}", noise, seeds)
        for noise, seeds in ((0.002, 1), (0.005, 1), (0.015, 1), (0.002, 3), (0.005, 3))
    ]
    cases = [
        case
        for name, noise, seeds in clean
        for case in _with_m(_pair(name, Family(noise=noise, seeds=seeds)), ALL_M)
    ]
    noisy, quiet = Family(noise=0.010), Family(noise=0.002, seeds=3)
    unequal = [
        Case(
            name="unequal noise (.010 once, .002 three times), reference noisy",
            kind="coverage",
            reference=noisy,
            others=(quiet,),
        ),
        Case(
            name="unequal noise, reference quiet", kind="coverage", reference=quiet, others=(noisy,)
        ),
    ]
    falling = Family(noise=FALLING_NOISE)
    others = [
        *unequal,
        _pair("falling noise, 1 seed", falling),
        _pair("falling noise, 3 seeds", replace(falling, seeds=3)),
        _pair("falling noise, 3 at the optimum", replace(falling, seeds="three at the optimum")),
        _pair(
            "seed noise .001, scatter .006, 3 seeds", Family(noise=0.001, scatter=0.006, seeds=3)
        ),
        _pair("sizes ± 16 ×, noise .002", Family(noise=0.002, width=16.0)),
        _pair("30 % of runs missing, noise .002", Family(noise=0.002, missing=0.3)),
        _pair("30 % of runs missing, noise .005", Family(noise=0.005, missing=0.3)),
        _pair("Student's tails, .005", Family(noise=0.005, tails="student")),
    ]
    for case in others:
        cases += _with_m(case, TWO_M)
    for rho, falls in ((0.0, False), (0.5, False), (0.9, False), (0.7, True)):
        for seeds in (1, 2):
            family = Family(
                budgets=DOUBLING, rung=1.5, rho=rho, rho_falls=falls, noise=0.005, seeds=seeds
            )
            apart = " a factor of 2 apart" if falls else ""
            name = f"trunks alike by {rho:g}{apart}, {seeds} seed{'s' * (seeds > 1)}"
            cases += _with_m(_pair(name, family), TWO_M)
    ladder = tuple(np.geomspace(optimum(BUDGETS[0]) / 1.3, optimum(BUDGETS[-1]) * 1.3, 7))
    cases.append(_pair("one ladder, noise .01", Family(noise=0.01, ladder=ladder)))
    return cases


def _order_cases() -> list[Case]:
    five = [
        Case(
            name="five identical families",
            kind="order",
            label=f"noise {noise:g}",
            reference=Family(noise=noise),
            others=(Family(noise=noise),) * 4,
            all_resources=True,
        )
        for noise in (0.002, 0.005)
    ]
    return [*five, _pair("flat profiles, noise .01", Family(noise=0.01, is_flat=True), "order")]


def _beyond_cases() -> list[Case]:
    return [
        Case(
            name=name,
            kind="beyond",
            label=f"noise {noise:g}, m = {m:g}",
            reference=Family(noise=noise, budgets=BUDGETS[:3]),
            others=(Family(noise=noise, budgets=budgets, m=m),),
        )
        for name, budgets in (
            ("new family at 3, 10 and 30 × the reference's last", (3e18, 1e19, 3e19)),
            ("new family at .3 and .1 × the reference's first", (1e16, 3e16)),
        )
        for noise in (0.002, 0.005)
        for m in (1.0, 1.15)
    ]


def _ugly_cases() -> list[Case]:
    family = Family(noise=0.005)
    return [
        _pair(
            "largest model ends at loss 9, one budget",
            family,
            "ugly",
            spoil=_largest_ends_high(BUDGETS[1:2]),
        ),
        _pair(
            "largest model ends at loss 9, every budget",
            family,
            "ugly",
            spoil=_largest_ends_high(BUDGETS),
        ),
        _pair("one size + 30 % in each budget", family, "ugly", spoil=_one_size_worse),
        _pair("six of 56 rows twice, rounded", family, "ugly", spoil=_exported_twice),
        _pair("sweep of learning rates, no seeds", family, "ugly", spoil=_sweep),
        _pair(
            "sweep of learning rates, --repeats best", family, "ugly", spoil=_sweep, repeats="best"
        ),
    ]


def _power_cases() -> list[Case]:
    """One family better by ln m, the others equal to the reference."""
    return [
        Case(
            name=f"{1 + num_others} families, noise {noise:g}",
            kind="power",
            label=f"ln m = {noise * step:g}",
            reference=Family(noise=noise),
            others=(
                Family(noise=noise, m=math.exp(noise * step)),
                *(Family(noise=noise),) * (num_others - 1),
            ),
        )
        for num_others in (1, 4)
        for noise in (0.002, 0.005)
        for step in (20, 28, 36, 44, 52, 60, 72)
    ]


CASES: tuple[Case, ...] = (
    *_coverage_cases(),
    *_order_cases(),
    *_beyond_cases(),
    *_ugly_cases(),
    *_power_cases(),
)
