"""What a table's own column names say of which is which: a mapping to look at before it is used.

A column is only suggested where its values can be what is meant. Of two that could be the same
and differ, the note names both; between two losses the user decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from isoflop.errors import UserError, shown
from isoflop.ingest import hints, known
from isoflop.ingest.cells import short, texts_of
from isoflop.ingest.charts import prepared
from isoflop.ingest.files import SOURCE_FILE
from isoflop.ingest.frames import TEXTS, read_numbers
from isoflop.ingest.mapping import ColumnMap, check_run, listed, product, terms_of
from isoflop.tables import METRIC, RUNS, loss_unit
from isoflop.units import NATS

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.arrays import Floats
    from isoflop.ingest.files import RawTable

_SAME = 1e-6
# A name of one letter is taken for a count only where its values are as large as counts are.
_LEAST_OF_A_LETTER = 1e3
_MANY = 2
_MOST_ARCHS = 40
_MAX_SAMPLE = 5_000
_TOKENS_OF_NANOCHAT = ("numiterations", "totalbatchsize")


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """A whole mapping, and what there is to say of it."""

    mapping: ColumnMap
    notes: tuple[str, ...]


def suggest(raw: RawTable, asked: ColumnMap | None = None) -> Suggestion:
    """Return what was asked for, completed by what the names of the columns say.

    Raises:
        UserError: no column can be the loss, or two of equal standing differ.
    """
    table = prepared(raw)
    look = _Look(table.frame)
    asked = asked or ColumnMap()
    check_run(asked, look.names)
    chosen = _Chosen(look, asked, _stored_unit(table))
    chosen.loss()
    for ours, tiers in known.COUNTS.items():
        chosen.number(ours, tiers)
    chosen.number("seed", known.SEED, _are_seeds)
    chosen.flops()
    chosen.tokens()
    for ours, tiers in (("status", known.STATUS), ("excluded_reason", known.EXCLUDED)):
        chosen.text(ours, tiers, lambda texts: bool(texts.notna().any()))
    chosen.steps_of_runs()
    chosen.text("run_id", known.RUN_ID, chosen.are_ids)
    chosen.budgets_in_names()
    chosen.arch(_name_of(table))
    chosen.own_columns()
    return Suggestion(mapping=chosen.mapping(), notes=tuple(chosen.notes))


def _stored_unit(raw: RawTable) -> str | None:
    """Return the unit that isoflop's own tables name; None: there is none to name it.

    Raises:
        UserError: files differ.
    """
    paths = [Path(file.name) for file in raw.files]
    units = {loss_unit(path) for path in paths if path.suffix == ".parquet" and path.is_file()}
    if len(units) > 1:
        allowed = "in one unit in all files"
        do = "import those of each unit by themselves"
        raise UserError("losses", shown(" and ".join(sorted(units))), allowed, do)
    return next(iter(units - {NATS}), None)


def _name_of(raw: RawTable) -> str:
    """Return what to call the only arch of a table: its file's name, else ``runs``."""
    if len(raw.files) != 1:
        return "runs"
    return PurePath(raw.files[0].name).name.partition(".")[0] or "runs"


class _Look:
    """A frame whose columns are found by their plain names."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.names = [str(name) for name in frame.columns]
        self._by_form: list[dict[str, list[str]]] = [{}, {}]
        self._numbers: dict[str, Floats] = {}
        self._texts: dict[str, pd.Series] = {}
        for name in self.names:
            for level, form in enumerate(known.forms(name)):
                self._by_form[min(level, 1)].setdefault(form, []).append(name)

    def columns(self, tier: Sequence[str]) -> list[str]:
        """Return the columns with these names; those with a tracker's prefix only if need be."""
        for by_form in self._by_form:
            found = [name for form in tier for name in by_form.get(form, ())]
            if found:
                return found
        return []

    def numbers(self, column: str) -> Floats:
        """Return a column's numbers, NaN where there is none."""
        if column not in self._numbers:
            self._numbers[column] = read_numbers(self.frame[column]).values
        return self._numbers[column]

    def texts(self, column: str) -> pd.Series:
        """Return a column's cells as texts, None where there is none."""
        if column not in self._texts:
            self._texts[column] = texts_of(self.frame[column])
        return self._texts[column]

    def sample(self, column: str) -> Floats:
        """Return numbers of a column by which to tell what it can be: all, or some of very many."""
        if len(self.frame) <= _MAX_SAMPLE or column in self._numbers:
            return self.numbers(column)
        import numpy as np

        cells = self.frame[column]
        given = np.flatnonzero(cells.notna() & (cells.astype(object) != ""))
        some = given[:: max(1, len(given) // _MAX_SAMPLE)]
        return read_numbers(cells.iloc[some]).values

    def product(self, ours: str, theirs: str) -> Floats:
        """Return the values of a product of columns."""
        terms = terms_of(ours, theirs, self.names)
        factors = [t.number if t.column is None else self.numbers(t.column) for t in terms]
        return product(zip(factors, [t.is_divisor for t in terms], strict=True), len(self.frame))


class _Chosen:
    """What is mapped so far."""

    def __init__(self, look: _Look, asked: ColumnMap, stored_unit: str | None) -> None:
        self.look = look
        self.stored_unit = stored_unit
        self.asked = asked
        self.columns = dict(asked.columns)
        self.given = {*asked.columns, *asked.parsed}
        self.notes: list[str] = []
        self.arch_name = asked.arch_name
        self.run = asked.run
        self.flops_unit = asked.flops_unit

    def mapping(self) -> ColumnMap:
        """Return the mapping."""
        return replace(
            self.asked,
            columns=self.columns,
            arch_name=self.arch_name,
            run=self.run,
            flops_unit=self.flops_unit or "flop",
            loss_unit=self.asked.loss_unit or self._loss_unit(),
        )

    def loss(self) -> None:
        """Choose the column of losses."""
        if "loss" in self.given:
            return
        for tier in known.LOSS:
            fitting = [c for c in self.look.columns(tier) if _are_losses(self.look.sample(c))]
            if not fitting:
                continue
            odd = self._differing(fitting)
            if odd is not None:
                raise UserError(
                    "loss",
                    f"{fitting[0]} or {odd}",
                    "one column (these two differ)",
                    f"add --map 'loss={fitting[0]}', or the other",
                )
            self._take_loss(fitting[0], is_train=tier is known.LOSS[-1])
            return
        alike = [c for c in self._alike() if _are_losses(self.look.sample(c))]
        last = [c for c in alike if known.plain(c.rsplit(".", 1)[-1]) in known.ALL_LOSSES]
        if len(last or alike) == 1:
            self._take_loss((last or alike)[0], is_train=False)
            return
        if alike:
            allowed = f"one column of losses ({hints.named(alike)} may be it)"
            raise UserError("loss", None, allowed, f"add --map 'loss={alike[0]}', or another")
        tried = [name for tier in known.LOSS for name in self.look.columns(tier)]
        cells = self.look.frame[tried[0]].dropna().to_list() if tried else []
        example = f"; {tried[0]} has {short(cells[0])}" if cells else ""
        found = f"tried: {listed(tried)}{example}" if tried else "none is called so"
        raise UserError(
            "loss",
            None,
            f"a column of numbers above 0 ({found}; there are {listed(self.look.names)})",
            "add --map loss=COLUMN",
        )

    def _alike(self) -> list[str]:
        """Return the columns that are called like losses, those of training last."""
        names = [name for name in self.look.names if hints.looks_like_loss(name)]
        return sorted(names, key=lambda name: "train" in name.lower())

    def _take_loss(self, column: str, *, is_train: bool) -> None:
        """Take a column of losses, and say so where others may be meant, or another unit."""
        self.columns["loss"] = column
        others = [name for name in self._alike() if name != column] if is_train else []
        others = [name for name in others if _are_losses(self.look.sample(name))]
        if others:
            self.notes.append(
                f"loss: {column} is taken, of training; what may be held out: "
                f"{hints.named(others)} (--map loss=COLUMN)"
            )
        if self.asked.loss_unit is None and self._loss_unit() == NATS:
            self._note(hints.unit_hint(column, self.look.sample(column)))

    def _note(self, hint: str | None) -> None:
        if hint is not None:
            self.notes.append(hint)

    def budgets_in_names(self) -> None:
        """Say how names of runs tell budgets, where no column does."""
        if self.asked.budget_from or "budget_flops" in {*self.columns, *self.given}:
            return
        for column in [c for tier in known.RUN_ID for c in self.look.columns(tier)]:
            hint = hints.budget_hint(column, self.look.texts(column))
            if hint is not None:
                self.notes.append(hint)
                return

    def number(
        self,
        ours: str,
        tiers: Sequence[Sequence[str]],
        fits: Callable[[Floats], bool] | None = None,
    ) -> None:
        """Choose a column of numbers, the first of the first tier that has one."""
        if ours in self.given:
            return
        for tier in tiers:
            fitting = [
                column
                for column in self.look.columns(tier)
                if (fits or _counts_of(column))(self.look.sample(column))
            ]
            if fitting:
                self._take(ours, fitting)
                return

    def _take(self, ours: str, fitting: Sequence[str]) -> None:
        odd = self._differing(fitting)
        if odd is not None:
            self.notes.append(
                f"{ours}: {fitting[0]} is taken; {odd} differs (--map '{ours}={odd}')"
            )
        self.columns[ours] = fitting[0]

    def _differing(self, fitting: Sequence[str]) -> str | None:
        """Return the first column whose numbers are not those of the first one."""
        import numpy as np

        if len(fitting) == 1:
            return None
        first = self.look.numbers(fitting[0])
        for column in fitting[1:]:
            other = self.look.numbers(column)
            both = np.isfinite(first) & np.isfinite(other)
            if not np.allclose(first[both], other[both], rtol=_SAME, atol=0.0):
                return column
        return None

    def flops(self) -> None:
        """Choose the column of FLOPs, and its unit by its name."""
        fitting = []
        if "flops" not in self.given:
            for column in self.look.names:
                matches = any(known.FLOPS.fullmatch(form) for form in known.forms(column))
                if matches and _counts_of(column)(self.look.sample(column)):
                    fitting.append(column)
            units = [_flops_unit(column) for column in fitting]
            fitting = [
                column for column, unit in zip(fitting, units, strict=True) if unit == units[0]
            ]
            if fitting:
                self._take("flops", fitting)
        theirs = self.columns.get("flops")
        if self.flops_unit is None and theirs is not None:
            named = [t.column for t in terms_of("flops", theirs, self.look.names) if t.column]
            self.flops_unit = _flops_unit(named[0])

    def tokens(self) -> None:
        """Choose the tokens of nanochat: its batches are counted in tokens."""
        if "n_tokens" in {*self.columns, *self.given}:
            return
        pair = [self.look.columns([name]) for name in _TOKENS_OF_NANOCHAT]
        if all(pair):
            self.columns["n_tokens"] = f"{pair[0][0]} * {pair[1][0]}"

    def text(
        self,
        ours: str,
        tiers: Sequence[Sequence[str]],
        fits: Callable[[pd.Series], bool],
    ) -> None:
        """Choose a column of texts."""
        if ours in self.given:
            return
        for tier in tiers:
            for column in self.look.columns(tier):
                if fits(self.look.texts(column)):
                    self.columns[ours] = column
                    return

    def are_ids(self, texts: pd.Series) -> bool:
        """Return whether each row, or each run of which rows are steps, has a name of its own."""
        if not texts.notna().all():
            return False
        if self.run is not None:
            runs = self.look.texts(SOURCE_FILE if self.run == "file" else self.run)
            return bool((texts.groupby(runs.to_numpy()).nunique() == 1).all())
        return bool(texts.is_unique)

    def arch(self, otherwise: str) -> None:
        """Choose the column of archs: one in which each has several sizes."""
        if self.arch_name is not None or "arch" in self.given:
            return
        self.text("arch", known.ARCH[:1], lambda texts: bool(texts.notna().any()))
        if "arch" not in self.columns:
            self.text("arch", known.ARCH[1:], self._are_archs)
        if "arch" not in self.columns:
            self.arch_name = otherwise
            self._note(hints.arch_hint(self._of_several_sizes()))

    def _of_several_sizes(self) -> list[str]:
        """Return columns of words that part the table, each part with several sizes."""
        used = {*self.columns.values(), SOURCE_FILE, *self.asked.parse}
        return [
            column
            for column in self.look.names
            if column not in used
            and self.look.frame[column].dtype.kind not in "iufcM"
            and texts_of(self.look.frame[column].iloc[:_MAX_SAMPLE]).nunique() <= _MOST_ARCHS
            and self._are_archs(self.look.texts(column))
        ]

    def _are_archs(self, texts: pd.Series) -> bool:
        import numpy as np

        sizes = self.columns.get("n_params")
        if texts.nunique() < _MANY or sizes is None:
            return False
        if np.isfinite(read_numbers(texts.dropna()).values).all():
            return False
        with_size = texts.to_frame("arch").assign(size=self.look.product("n_params", sizes))
        each = with_size.dropna().groupby("arch")["size"].nunique()
        return bool(len(each)) and bool((each >= _MANY).mean() > 0.5)

    def steps_of_runs(self) -> None:
        """Choose what rows are steps of, where a column counts up within each run."""
        names = self.look.columns(known.STEPS_WITHIN)
        if self.run is not None or not names:
            return
        candidates = [SOURCE_FILE] if SOURCE_FILE in self.look.names else []
        candidates += [c for tier in known.RUN_ID for c in self.look.columns(tier)]
        for column in candidates:
            if self._counts_up(names[0], column):
                self.run = "file" if column == SOURCE_FILE else column
                return

    def _counts_up(self, step: str, column: str) -> bool:
        import pandas as pd

        frame = pd.DataFrame(
            {"run": self.look.texts(column), "step": self.look.numbers(step)}
        ).dropna()
        sizes = self.columns.get("n_params")
        if sizes is not None:
            frame["size"] = self.look.product("n_params", sizes)[frame.index]
        groups = frame.groupby("run", sort=False)
        if frame.empty or (groups.ngroups in (1, len(frame)) and column != SOURCE_FILE):
            return False
        if groups.ngroups == len(frame) or not bool((groups["step"].diff().dropna() > 0).all()):
            return False
        return sizes is None or bool((groups["size"].nunique() <= 1).all())

    def own_columns(self) -> None:
        """Take columns that are called as isoflop calls its own, and metrics of lm-eval."""
        own = {name for name, _ in RUNS.columns} - {"warnings", "declared"}
        for name in self.look.names:
            metric = known.METRIC.fullmatch(name)
            ours = name if metric is None else f"{METRIC}{metric[1]}_{metric[2]}"
            is_own = name in own or (ours.startswith(METRIC) and ours.isprintable())
            if is_own and ours not in {*self.columns, *self.given} and self._has_some(ours, name):
                self.columns[ours] = name

    def _has_some(self, ours: str, column: str) -> bool:
        """Return whether a column of numbers holds one."""
        import numpy as np

        return ours in TEXTS or bool(np.isfinite(self.look.sample(column)).any())

    def _loss_unit(self) -> str:
        column = self.columns.get("loss") or self.asked.parsed.get("loss", "")
        if self.stored_unit is not None and column == "loss":
            return self.stored_unit
        form = known.plain(column)
        return next((unit for regex, unit in known.UNIT_OF_LOSS if regex.search(form)), NATS)


def _are_losses(values: Floats) -> bool:
    import numpy as np

    finite = values[np.isfinite(values)]
    return bool(len(finite)) and bool((finite > 0).all())


def _are_seeds(values: Floats) -> bool:
    import numpy as np

    known_ones = values[~np.isnan(values)]
    return bool(len(known_ones)) and bool((known_ones == np.floor(known_ones)).all())


def _counts_of(column: str) -> Callable[[Floats], bool]:
    """Return whether values can be counts: above 1, and large of a column of one letter."""
    import numpy as np

    least = _LEAST_OF_A_LETTER if len(known.plain(column)) == 1 else 0.0

    def fits(values: Floats) -> bool:
        finite = values[np.isfinite(values)]
        return bool(len(finite)) and bool((finite > 0).all()) and bool(np.median(finite) > least)

    return fits


def _flops_unit(column: str) -> str:
    for form in known.forms(column):
        match = known.FLOPS.fullmatch(form)
        if match is not None:
            return f"{match['unit'] or ''}flop"
    return "flop"
