"""A table of others and a mapping, to a table of runs: every value read, every row accounted for.

A row that no fit can use stays, with its reason. A row that is no run (left out by a condition, or
a step of a run that another row ends) goes to the rows that were dropped, with its reason, too.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from isoflop.errors import UserError, shown
from isoflop.ingest.budgets import Cluster, label_budgets
from isoflop.ingest.cells import number_or_none, short, texts_of
from isoflop.ingest.charts import prepared
from isoflop.ingest.files import SOURCE_FILE
from isoflop.ingest.frames import TEXTS, read_numbers, read_reason, read_status
from isoflop.ingest.hints import sizes_hint
from isoflop.ingest.mapping import (
    FLOPS_UNITS,
    PERPLEXITY,
    ColumnMap,
    check_run,
    listed,
    meets,
    no_column,
    product,
    terms_of,
)
from isoflop.ingest.names import NamePattern, pattern_of
from isoflop.ingest.store import Imported
from isoflop.numbers import format_flops
from isoflop.tables import RUNS
from isoflop.texts import printable
from isoflop.units import NATS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from isoflop.arrays import Floats
    from isoflop.ingest.files import RawTable
    from isoflop.ingest.frames import Numbers

# Conventions of counting differ by less, but for tiny models.
_FAR_FLOPS = 1.7
# Of int64, in which counts are stored.
_MOST_COUNT = 2.0**63
_MOST_SEED = 2.0**53
_NEEDED = ("loss", "n_params", "n_tokens", "flops", "budget_flops")
"""A row in which one of these is mapped and cannot be read enters no fit."""


def import_table(raw: RawTable, mapping: ColumnMap) -> Imported:
    """Return the runs of a table of others.

    Args:
        raw: their table.
        mapping: whole, as `isoflop.ingest.suggest.suggest` completes one.

    Raises:
        UserError: a column that there is not, or of which nothing can be read; no row is left.
    """
    work = _Work(prepared(raw), mapping, list(raw.frame.columns))
    work.check_columns()
    work.note_names()
    work.leave_out()
    work.read()
    work.keep_runs()
    work.derive()
    work.note_flops()
    work.set_budgets()
    return work.imported()


class _Work:
    """A table on its way: the rows that are still in it, and the values of ours."""

    def __init__(self, raw: RawTable, mapping: ColumnMap, names: Sequence[Any]) -> None:
        import numpy as np

        self.raw = raw
        self.raw_names = names
        self.frame = raw.frame
        self.names = [str(name) for name in raw.frame.columns]
        self.mapping = mapping
        self.numbers: dict[str, Floats] = {}
        self.texts: dict[str, pd.Series] = {}
        self.reasons: np.ndarray[Any, np.dtype[Any]] = np.full(len(self.frame), None, dtype=object)
        self.dropped: list[tuple[np.ndarray[Any, Any], list[str]]] = []
        self.derived: dict[str, str] = {}
        self.notes: list[str] = []

    def check_columns(self) -> None:
        """Raise UserError where a column of the mapping is not there."""
        for column in self.mapping.parse:
            if column not in self.names:
                raise no_column("--parse", column, self.names)
        check_run(self.mapping, self.names)

    def note_names(self) -> None:
        """Note columns that are used and whose name stands twice."""
        counts = Counter(map(str, self.raw_names))
        for ours, theirs in self.mapping.columns.items():
            if counts[theirs] > 1:
                self.notes.append(
                    f"{ours}: {counts[theirs]} columns are called {printable(theirs, '')}; the "
                    f"first is taken (another: --map '{ours}={printable(theirs, '')} (2)')."
                )

    def _keep(self, chosen: np.ndarray[Any, Any], reasons: Sequence[str]) -> None:
        """Drop the rows that are not chosen, each with its reason."""
        gone = self.frame.index.to_numpy()[~chosen]
        if not len(gone):
            return
        self.dropped.append((gone, list(reasons)))
        self.frame = self.frame[chosen]
        self.reasons = self.reasons[chosen]
        self.numbers = {ours: values[chosen] for ours, values in self.numbers.items()}
        self.texts = {ours: texts[chosen] for ours, texts in self.texts.items()}
        if not len(self.frame):
            do = "change the condition" if self.mapping.where else "add rows to it"
            raise UserError("rows of the table", shown("none"), "at least one", do)

    def leave_out(self) -> None:
        """Drop the rows that do not meet the conditions."""
        if not len(self.frame):
            raise UserError("rows of the table", shown("none"), "at least one", "add rows to it")
        for text in self.mapping.where:
            chosen = meets(self.frame, self.names, text)
            self._keep(chosen, [f"not {text}"] * int((~chosen).sum()))

    def read(self) -> None:
        """Read the columns that are mapped, and what names hold."""
        for column, pattern in self.mapping.parse.items():
            self._parse(column, pattern_of(pattern, f"--parse {column}"))
        for ours, theirs in self.mapping.columns.items():
            if ours not in TEXTS:
                self._set_numbers(ours, *self._product(ours, theirs))
            elif theirs in self.names:
                self.texts[ours] = texts_of(self.frame[theirs])
            else:
                raise no_column(f"--map {ours}", theirs, self.names)
        scale = FLOPS_UNITS[self.mapping.flops_unit or "flop"]
        if "flops" in self.numbers and scale != 1.0:
            self.numbers["flops"] = self.numbers["flops"] * scale
        if self.mapping.loss_unit == PERPLEXITY and "loss" in self.numbers:
            import numpy as np

            with np.errstate(divide="ignore", invalid="ignore"):
                self.numbers["loss"] = np.log(self.numbers["loss"])
        self._read_reasons()

    def _product(self, ours: str, theirs: str) -> tuple[Floats, dict[int, Any]]:
        """Return the values of a product, and the cells that are no numbers by their place."""
        import numpy as np

        factors: list[tuple[Floats | float, bool]] = []
        odd: dict[int, Any] = {}
        for term in terms_of(ours, theirs, self.names):
            if term.column is None:
                factors.append((term.number, term.is_divisor))
                continue
            column = self.frame[term.column]
            read = read_numbers(column)
            self._check_any(ours, column, read)
            odd |= {int(place): column.iloc[place] for place in np.flatnonzero(read.unread)}
            factors.append((read.values, term.is_divisor))
        return product(factors, len(self.frame)), odd

    def _check_any(self, ours: str, column: pd.Series, read: Numbers) -> None:
        """Refuse a column that is needed and of which nothing is a number."""
        if ours in _NEEDED and read.unread.any() and bool((read.unread | read.missing).all()):
            cell = column.iloc[int(read.unread.argmax())]
            field = f"{ours} ({column.name})"
            raise UserError(field, cell, "numbers in some row", f"add --map {ours}=COLUMN")

    def _set_numbers(self, ours: str, values: Floats, odd: dict[int, Any]) -> None:
        import numpy as np

        if ours == "seed":
            # Beyond what a float counts, two seeds could look the same.
            whole = (values == np.floor(values)) & (np.abs(values) < _MOST_SEED)
            wrong = ~np.isnan(values) & ~whole
            odd |= {int(place): values[place] for place in np.flatnonzero(wrong)}
            values = np.where(wrong, np.nan, values)
        elif ours in _NEEDED:
            most = _MOST_COUNT if ours in ("n_params", "n_tokens") else np.inf
            for i in np.flatnonzero(np.abs(values) >= most):
                self._exclude(int(i), f"{ours} is {values[i]:g}, which is no possible one")
        self.numbers[ours] = values
        if not odd:
            return
        if ours in _NEEDED:
            for place, cell in odd.items():
                self._exclude(place, f"{ours} is {short(cell)}, which is no number")
        else:
            cells = f"{len(odd)} cell{'s' * (len(odd) > 1)}"
            self.notes.append(
                f"{ours}: {cells} left empty, such as {short(next(iter(odd.values())))}."
            )

    def _exclude(self, place: int, reason: str) -> None:
        if self.reasons[place] is None:
            self.reasons[place] = printable(reason, "")

    def _parse(self, column: str, pattern: NamePattern) -> None:
        """Read what the names of a column hold."""
        import pandas as pd

        names = texts_of(self.frame[column])
        found = {name: pattern.match(name, _may_be) for name in names.dropna().unique()}
        if not any(found.values()):
            example = next(iter(found), None)
            allowed = "a pattern that some name fits"
            raise UserError(f"--parse {column}", example, allowed, "compare it with this name")
        for place, name in enumerate(names):
            if not found.get(name):
                self._exclude(place, f"{column} is {short(name)}, which does not fit the pattern")
        empty: dict[str, str] = {}
        for ours in pattern.named:
            texts = pd.Series([(found.get(name) or empty).get(ours) for name in names])
            texts.index = self.frame.index
            if ours in TEXTS:
                self.texts[ours] = texts_of(texts)
            else:
                self._set_numbers(ours, read_numbers(texts).values, {})

    def _read_reasons(self) -> None:
        """Put what their table says against a row before what could not be read."""
        for place, cell in enumerate(self.texts.pop("excluded_reason", ())):
            reason = read_reason(cell)
            if reason is not None:
                self.reasons[place] = printable(reason, "")

    def keep_runs(self) -> None:
        """Drop the steps of runs that do not count; see ColumnMap.take."""
        import numpy as np
        import pandas as pd

        run, take = self.mapping.run, self.mapping.take
        if run is None or take == "every":
            return
        runs = texts_of(self.frame[SOURCE_FILE if run == "file" else run])
        unnamed = runs.isna().to_numpy(dtype=bool)
        for place in np.flatnonzero(unnamed):
            self._exclude(int(place), f"{run} is missing, so that the run is not known")
        codes, names = pd.factorize(runs)
        # A row without a name is a run of its own.
        codes = np.where(unnamed, len(names) + np.arange(len(runs)), codes)
        steps = self.numbers.get("steps", np.arange(len(codes), dtype=np.float64))
        order = np.lexsort((np.arange(len(codes)), np.nan_to_num(steps, nan=-np.inf), codes))
        self._fill_forward(codes, order)
        loss = self.numbers.get("loss", np.full(len(codes), np.nan))
        has_loss = np.isfinite(loss) & (loss > 0)
        rank = np.empty(len(codes))
        rank[order] = np.arange(len(codes))
        rank = -loss if take == "best" else rank
        # Rows with a loss come last, then by rank; the last of each run counts.
        best = np.lexsort((rank, has_loss, codes))
        last = np.append(np.diff(codes[best]) != 0, True)
        chosen = np.zeros(len(codes), dtype=bool)
        chosen[best[last]] = True
        gone = [f"a step of {short(name)}; its {take} one counts" for name in runs[~chosen]]
        self._keep(chosen, gone)

    def _fill_forward(self, codes: np.ndarray[Any, Any], order: np.ndarray[Any, Any]) -> None:
        """Give a step what an earlier one of its run logged, losses aside."""
        import pandas as pd

        earlier = {ours: values for ours, values in self.numbers.items() if ours != "loss"}
        for ours, column in (earlier | self.texts).items():
            logged = pd.Series(column).set_axis(range(len(codes)))
            if logged.isna().any():
                filled = logged.iloc[order].groupby(codes[order]).ffill().sort_index()
                if ours in self.texts:
                    given = filled.where(filled.notna(), None)
                    self.texts[ours] = given.set_axis(self.frame.index)
                else:
                    self.numbers[ours] = filled.to_numpy()

    def derive(self) -> None:
        """Compute FLOPs, tokens and parameters that no column has from the others."""
        n, d, c = ("n_params" in self.numbers, "n_tokens" in self.numbers, "flops" in self.numbers)
        by_steps = ("steps", "batch_size", "seq_len")
        if not d and all(name in self.numbers for name in by_steps):
            self._derive("n_tokens", "steps · batch_size · seq_len", by_steps)
            d = True
        spent = "flops" if c else "budget_flops"
        if not (n and d) and spent in self.numbers:
            if n:
                self._derive(
                    "n_tokens", f"{spent} / (6 · n_params)", (spent,), ("n_params",), 1 / 6
                )
            elif d:
                self._derive(
                    "n_params", f"{spent} / (6 · n_tokens)", (spent,), ("n_tokens",), 1 / 6
                )
        if not c and n and d:
            self._derive("flops", "6 · n_params · n_tokens", ("n_params", "n_tokens"), (), 6.0)
        elif not c and "budget_flops" in self.numbers:
            self._derive("flops", "budget_flops", ("budget_flops",))
        lacking = [name for name in ("n_params", "n_tokens") if name not in self.numbers]
        if "loss" not in self.numbers or lacking:
            there = f"there are {listed(self.names)}"
            allowed = f"known: loss, and two of n_params, n_tokens and flops or a budget ({there})"
            missing = ", ".join(["loss"] * ("loss" not in self.numbers) + lacking)
            raise UserError(
                "columns of ours", shown(f"none for {missing}"), allowed, "add --map OURS=THEIRS"
            )

    def note_flops(self) -> None:
        """Note FLOPs that are far from 6 N D and from the budget: a unit or a convention."""
        import numpy as np

        if "flops" in self.derived:
            self._note_sizes()
            return
        if "flops" not in self.numbers:
            return
        n, d = self.numbers["n_params"], self.numbers["n_tokens"]
        with np.errstate(over="ignore", invalid="ignore"):
            others = {"6 · n_params · n_tokens": 6 * n * d}
        if {"n_params", "n_tokens"} & set(self.derived):
            others = {}
        if "budget_flops" in self.numbers and "budget_flops" not in self.derived:
            others["budget_flops"] = self.numbers["budget_flops"]
        for what, other in others.items():
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = self.numbers["flops"] / other
            ratios = ratios[np.isfinite(ratios)]
            ratio = float(np.median(ratios)) if len(ratios) else 1.0
            if not 1 / _FAR_FLOPS < ratio < _FAR_FLOPS:
                theirs = self.mapping.columns.get("flops", "COLUMN")
                self.notes.append(
                    f"flops are {ratio:.3g} times {what} (median): --flops-unit, or another "
                    f"convention (--map {shlex.quote(f'flops={theirs} / 3')})?"
                )

    def _note_sizes(self) -> None:
        if "budget_flops" in self.numbers and not {"n_params", "n_tokens"} & set(self.derived):
            budget = self.mapping.columns.get("budget_flops", "COLUMN")
            hint = sizes_hint(self.numbers, self.frame, budget)
            self.notes += [] if hint is None else [hint]

    def _derive(
        self,
        ours: str,
        how: str,
        factors: Sequence[str],
        divisors: Sequence[str] = (),
        number: float = 1.0,
    ) -> None:
        times = [(self.numbers[name], False) for name in factors]
        by = [(self.numbers[name], True) for name in divisors]
        self.numbers[ours] = product([(number, False), *times, *by], len(self.frame))
        self.derived[ours] = how

    def set_budgets(self) -> None:
        """Take budgets from FLOPs where that was asked for."""
        import numpy as np

        asked = self.mapping.budget_from
        if asked == "flops":
            self.numbers["budget_flops"] = self.numbers["flops"].copy()
            self.derived["budget_flops"] = "flops"
        elif asked == "auto":
            labelled = label_budgets(self.imported().rows, "auto")
            budgets = [row.get("budget_flops") for row in labelled.rows]
            self.numbers["budget_flops"] = np.array(budgets, dtype=np.float64)
            self.derived["budget_flops"] = f"{len(labelled.clusters)} clusters of flops"
            self.notes += [_cluster_note(cluster) for cluster in labelled.clusters]

    def _statuses(self) -> list[str]:
        """Return the statuses of ours; without theirs, by whether there is a loss."""
        import numpy as np

        given = self.texts.get("status", [None] * len(self.frame))
        # Of a run without a status, its loss tells whether it is done; what could not be read has
        # its own reason.
        has_loss = ~np.isnan(self.numbers["loss"]) | [text is not None for text in self.reasons]
        otherwise = ["done" if has else "missing" for has in has_loss]
        return [
            printable(read_status(word), "") if word else unknown
            for word, unknown in zip(given, otherwise, strict=True)
        ]

    def imported(self) -> Imported:
        """Return the runs as they are now, and the rows that were dropped."""
        import pandas as pd

        texts = {
            ours: [None if text is None else printable(text, "") for text in given]
            for ours, given in self.texts.items()
        }
        if self.mapping.arch_name is not None:
            texts["arch"] = [self.mapping.arch_name] * len(self.frame)
        values: dict[str, Any] = {**texts, **self.numbers, "excluded_reason": list(self.reasons)}
        values["status"] = self._statuses()
        ours = [name for name in RUNS.names if name in values]
        more = sorted(name for name in values if name not in RUNS.names)
        frame = pd.DataFrame({name: values[name] for name in [*ours, *more]})
        unit = self.mapping.loss_unit or NATS
        return Imported(
            frame=frame,
            dropped=self._dropped_frame(),
            derived=self.derived,
            notes=tuple(self.notes),
            mapping=self.mapping,
            unit=NATS if unit == PERPLEXITY else unit,
        )

    def _dropped_frame(self) -> pd.DataFrame:
        import numpy as np
        import pandas as pd

        files, rows = _places(self.raw)
        if not self.dropped:
            return pd.DataFrame({"source_file": [], "row": [], "reason": []}, dtype=object)
        gone = np.concatenate([index for index, _ in self.dropped])
        reasons = [printable(reason, "") for _, texts in self.dropped for reason in texts]
        order = np.argsort(gone, kind="stable")
        return pd.DataFrame(
            {
                "source_file": [files[gone[i]] for i in order],
                "row": [rows[gone[i]] for i in order],
                "reason": [reasons[i] for i in order],
            }
        )


def _places(raw: RawTable) -> tuple[list[str], list[int]]:
    """Return the file of each row, and its number there, from 1."""
    if sum(file.num_rows for file in raw.files) != len(raw.frame):
        # A chart, of which columns became rows.
        name = raw.files[0].name if len(raw.files) == 1 else ""
        return [name] * len(raw.frame), list(range(1, len(raw.frame) + 1))
    names = [file.name for file in raw.files for _ in range(file.num_rows)]
    return names, [row for file in raw.files for row in range(1, file.num_rows + 1)]


def _may_be(ours: str, text: str) -> bool:
    """Return whether a field of a pattern may hold a text."""
    return ours in TEXTS or (number_or_none(text) is not None)


def _cluster_note(cluster: Cluster) -> str:
    return (
        f"budget {format_flops(cluster.budget_flops)}: {cluster.num_runs} runs of "
        f"{sum(cluster.sizes.values())} sizes within {100 * cluster.spread:.2g} %"
    )
