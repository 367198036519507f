"""How a table of others becomes a table of runs: which of their columns is which of ours.

A mapping is stored with what was imported (import.json), so that the import can be repeated.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from isoflop.errors import UserError, shown
from isoflop.ingest.cells import number_or_none, short, texts_of
from isoflop.ingest.files import SOURCE_FILE
from isoflop.ingest.frames import NUMBERS, TEXTS, read_numbers
from isoflop.ingest.names import pattern_of
from isoflop.tables import METRIC
from isoflop.texts import has_control
from isoflop.units import PERPLEXITIES, read_unit
from isoflop.validate import CLOSED

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.arrays import Bools, Floats

FLOPS_UNITS = {
    "flop": 1.0,
    "kflop": 1e3,
    "mflop": 1e6,
    "gflop": 1e9,
    "tflop": 1e12,
    "pflop": 1e15,
    "eflop": 1e18,
    "zflop": 1e21,
    "pflop-days": 1e15 * 86_400,
    "petaflop/s-days": 1e15 * 86_400,
}
"""What one of a unit is in FLOPs."""

PERPLEXITY = "perplexity"
"""As a unit of losses: exp of nats per token, of which the logarithm is taken."""

KNOWN = (*sorted(TEXTS), *sorted(NUMBERS))
"""Columns of ours that mean something to isoflop; any other that is mapped holds numbers."""
_NOT_MAPPED = ("warnings", "declared")
_NAME = re.compile(r"[A-Za-z]\w*")
_LIKENESS = 0.85
_MAX_SHOWN = 30
_MAX_FACTORS = 20
_MAX_NAME = 60

_OPERATORS = (" * ", " / ")
_COMPARISON = re.compile(r"==|!=|<=|>=|=|<|>")
_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

Take = Literal["last", "best", "every"]
BudgetFrom = Literal["flops", "auto", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnMap:
    """Which columns of a table of others are which of ours, and how they are read."""

    __pydantic_config__: ClassVar = CLOSED

    columns: Mapping[str, str] = field(default_factory=dict)
    """Theirs by ours. Theirs is a column, or a product of columns and numbers, as in
    ``num_iterations * total_batch_size`` or ``flops / 6 / n_params``."""
    arch_name: str | None = None
    """The arch of every row, where no column has it."""
    parse: Mapping[str, str] = field(default_factory=dict)
    """Patterns by the column whose texts hold values of ours."""
    where: tuple[str, ...] = ()
    """Conditions on their columns, ``COLUMN OP VALUE``, that a row has to meet."""
    run: str | None = None
    """The column that says which run a row is a step of, or ``file``; None: a row is a run."""
    take: Take = "last"
    """Which step of a run counts: the last one with a loss, that of the lowest loss, or each."""
    budget_from: BudgetFrom | None = None
    """Where budgets come from if no column has them; None is none."""
    flops_unit: str | None = None
    """Of their column of FLOPs; None: FLOPs, or what its name says."""
    loss_unit: str | None = None
    """Of their losses; one of isoflop.units.UNITS, ``perplexity``, or the name of a metric. None:
    nats per token, or what the name of their column says."""

    def __post_init__(self) -> None:
        for ours in self.columns:
            check_ours(ours)
        for column, pattern in self.parse.items():
            for ours in pattern_of(pattern, f"--parse {column}").named:
                check_ours(ours)
        twice = sorted(set(self.columns) & set(self.parsed))
        if twice:
            allowed = f"from one place (the pattern of {self.parsed[twice[0]]!r} has it, too)"
            raise UserError(twice[0], self.columns[twice[0]], allowed, "leave one out")
        if self.arch_name is not None and (not self.arch_name or has_control(self.arch_name)):
            allowed = "a name without control characters"
            raise UserError("arch_name", self.arch_name, allowed, "correct it")
        if "arch" in {*self.columns, *self.parsed} and self.arch_name is not None:
            raise UserError(
                "--arch-name", self.arch_name, "given where no column has it", "drop it"
            )
        unit = self.loss_unit
        if unit is not None and (has_control(unit) or not unit.strip()):
            raise UserError("--loss-unit", self.loss_unit, "a unit or a name", "correct it")
        if self.flops_unit is not None and self.flops_unit not in FLOPS_UNITS:
            allowed = ", ".join(FLOPS_UNITS)
            raise UserError("--flops-unit", self.flops_unit, allowed, "name one of these")

    @property
    def parsed(self) -> dict[str, str]:
        """The columns of theirs whose names hold a value, by ours."""
        found: dict[str, str] = {}
        for column, pattern in self.parse.items():
            found |= dict.fromkeys(pattern_of(pattern, f"--parse {column}").named, column)
        return found


def read_loss_unit(word: str, option: str = "--loss-unit") -> str:
    """Return the unit of losses that an option of an import names, which may be perplexity.

    Args:
        word: as `isoflop.units.read_unit` takes it, or perplexity.
        option: what a message calls it.

    Raises:
        UserError: as `isoflop.units.read_unit` of any other word.
    """
    return PERPLEXITY if word.strip().lower() in PERPLEXITIES else read_unit(word, option)


def check_ours(name: str) -> None:
    """Raise UserError unless a name can be that of a column of ours."""
    if name in KNOWN:
        return
    if name.startswith(METRIC) and name.isprintable() and len(name) > len(METRIC):
        return
    if not _NAME.fullmatch(name) or name in _NOT_MAPPED:
        allowed = "a column of runs.parquet, or a name of letters, digits and _"
        raise UserError("column to map", name, allowed, "rename it")
    near = get_close_matches(name, KNOWN, 1, _LIKENESS)
    if near:
        raise UserError("column to map", name, "a name unlike isoflop's own", f"write {near[0]}")


def check_run(mapping: ColumnMap, names: Collection[str]) -> None:
    """Raise UserError unless what tells runs apart is there."""
    if mapping.run == "file" and SOURCE_FILE not in names:
        allowed = "a column: there is only one file"
        raise UserError("--run", "file", allowed, "name the column that tells runs apart")
    if mapping.run is not None and mapping.run not in ("file", *names):
        raise no_column("--run", mapping.run, names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """A factor of a product: a column or a number, multiplied or divided by."""

    column: str | None
    number: float
    is_divisor: bool


def terms_of(ours: str, theirs: str, names: Collection[str]) -> tuple[Term, ...]:
    """Return the factors of what a column of ours is made of.

    Args:
        ours: named in the message.
        theirs: a column, or a product of columns and numbers.
        names: the columns that there are.

    Raises:
        UserError: a column that there is not, with the nearest.
    """
    if theirs in names:
        return (Term(column=theirs, number=1.0, is_divisor=False),)
    terms: list[Term] = []
    for piece, is_divisor in _pieces(theirs):
        if piece in names:
            terms.append(Term(column=piece, number=1.0, is_divisor=is_divisor))
            continue
        number = number_or_none(piece)
        if number is None and re.search(r"\S[*/]|[*/]\S", piece.replace("**", "")):
            parts = re.split(r"[*/]", piece)
            if any(part.strip() in names for part in parts):
                allowed = "a column, or a product with blanks around * and /"
                raise UserError(f"--map {ours}", theirs, allowed, "add the blanks")
        if number is None:
            raise no_column(f"--map {ours}", piece, names)
        terms.append(Term(column=None, number=number, is_divisor=is_divisor))
    if all(term.column is None for term in terms):
        allowed = "a column, or a product of columns and numbers"
        raise UserError(f"--map {ours}", theirs, f"{allowed} ({listed(names)})", "name a column")
    return tuple(terms)


def product(factors: Iterable[tuple[Floats | float, bool]], num_rows: int) -> Floats:
    """Return what factors make, in their order; by those marked so it is divided.

    What cannot be divided is NaN or infinite, without a warning.
    """
    import numpy as np

    values: Floats = np.ones(num_rows)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for factor, is_divisor in factors:
            values = values / factor if is_divisor else values * factor
    return values


def _pieces(theirs: str) -> Iterable[tuple[str, bool]]:
    """Yield the factors of a product as text, and whether each is divided by."""
    if sum(map(theirs.count, _OPERATORS)) > _MAX_FACTORS:
        allowed = f"a column, or a product of at most {_MAX_FACTORS} factors"
        raise UserError("column to map", theirs[:_MAX_NAME], allowed, "shorten it")
    is_divisor = False
    while True:
        places = [(theirs.find(op), op) for op in _OPERATORS if op in theirs]
        if not places:
            yield theirs.strip(), is_divisor
            return
        place, operator = min(places)
        yield theirs[:place].strip(), is_divisor
        is_divisor = operator == " / "
        theirs = theirs[place + len(operator) :]


def no_column(what: str, name: str, names: Collection[str]) -> UserError:
    """Return the error for a column that a table does not have, with the nearest one."""
    by_letters = {other.lower(): other for other in names}
    near = get_close_matches(name.lower(), by_letters, n=1)
    do = f"write {by_letters[near[0]]}" if near else "name one of them"
    return UserError(what, name, f"a column of the table ({listed(names)})", do)


def listed(names: Collection[str]) -> str:
    """Return names of columns in a line, the first ones of very many."""
    shown_ones = [
        name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…"
        for name in list(names)[:_MAX_SHOWN]
    ]
    first = ", ".join(shown_ones) or "it has none"
    more = len(names) - _MAX_SHOWN
    return f"{first}, and {more} more" if more > 0 else first


@dataclass(frozen=True, kw_only=True, slots=True)
class _Condition:
    """What a row has to meet: a column, an operator, a value as text."""

    column: str
    operator: str
    value: str


def _condition_of(text: str, names: Collection[str]) -> _Condition:
    """Return a condition ``COLUMN OP VALUE``, OP one of ``= != < <= > >=``.

    Raises:
        UserError: there is no operator, or no such column.
    """
    found = [
        (text[: match.start()].strip(), match.group(), text[match.end() :].strip())
        for match in _COMPARISON.finditer(text)
    ]
    if not found:
        allowed = "COLUMN OP VALUE, where OP is one of = != < <= > >="
        raise UserError("--where", shown(repr(text)), allowed, "write it so, in quotes")
    # Names of columns may hold such signs themselves.
    known = [parts for parts in found if parts[0] in names]
    if not known:
        raise no_column("--where", found[0][0], names)
    column, sign, value = known[0]
    return _Condition(column=column, operator={"==": "="}.get(sign, sign), value=value)


def meets(frame: pd.DataFrame, names: Sequence[str], text: str) -> Bools:
    """Return which rows meet a condition.

    Numbers are compared as numbers, however they are written; a missing value is below and above
    nothing and equal to nothing but an empty VALUE.

    Raises:
        UserError: an order is asked for of texts, or of a value that is no number.
    """
    condition = _condition_of(text, names)
    column = frame[condition.column]
    wanted = condition.value.strip("'\"")
    number = number_or_none(wanted)
    read = read_numbers(column)
    texts = texts_of(column)
    missing = texts.isna().to_numpy(dtype=bool)
    if condition.operator in _ORDER:
        if number is None:
            allowed = f"COLUMN {condition.operator} NUMBER"
            raise UserError("--where", text, allowed, "compare texts by = or !=")
        if bool(read.unread.any()) and bool((read.unread | read.missing).all()):
            cell = short(column.iloc[int(read.unread.argmax())])
            allowed = f"of a column of numbers ({condition.column} has {cell})"
            raise UserError("--where", text, allowed, "compare texts by = or !=")
        return _array(_ORDER[condition.operator](read.values, number))
    equal = missing if wanted == "" else _array(texts == wanted) & ~missing
    if number is not None:
        equal = equal | (read.values == number)
    return equal if condition.operator == "=" else ~equal


def _array(values: Any) -> Bools:
    import numpy as np

    return np.asarray(values, dtype=bool)
