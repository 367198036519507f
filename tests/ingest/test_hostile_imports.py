"""Tables of anything, imported: runs that are whole, or a refusal in one line, and nothing else."""

from __future__ import annotations

import datetime
import decimal
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from isoflop.analysis.load import load_rows
from isoflop.analysis.points import select_points
from isoflop.errors import UserError
from isoflop.ingest.files import RawTable, SourceFile
from isoflop.ingest.mapping import ColumnMap
from isoflop.ingest.store import write_import
from isoflop.ingest.suggest import suggest
from isoflop.ingest.table import import_table

NAMES = [
    *("N", "D", "C", "loss", "eval/loss", "Name", "name", "run", "State", "Tags", "arch", "model"),
    *("seed", "_step", "Step", "budget", "source_file", "", "Unnamed: 0", "a - eval/loss", "x > y"),
    *("a - eval/loss__MIN", "total_flops", "tokens", "excluded", "id", "n_params", "warnings"),
    *("declared", "metric_acc", "status", "results.arc.acc,none", "loss"),
]
CELLS = [
    *(1, 2.5, 1e18, -1, 0, "", "125M", "1e17", "NaN", "crashed", None, math.nan, math.inf, True),
    *(np.bool_(False), pd.NA, pd.NaT, decimal.Decimal("1.5"), datetime.datetime(2020, 1, 1)),
    *([1, 2], {"a": 1}, "a\x1b[2J", "\u202e", b"bytes", 10**400, "finished", "x" * 300, "12 %"),
    *("a-1e17-N10M", complex(1, 2), pd.Timedelta("1h"), "\ud800"),
]


def column(rng: random.Random, num: int) -> pd.Series:
    kind = rng.choice(["numbers", "numbers", "names", "whole", "dates", "empty", "cells"])
    if kind == "numbers":
        return pd.Series([10 ** rng.uniform(0, 18) for _ in range(num)], dtype=float)
    if kind == "names":
        names = [f"run{i % 3}" for i in range(num)]
        return pd.Series(names, dtype=rng.choice(["object", "string", "category"]))
    if kind == "whole":
        return pd.Series(range(num), dtype=rng.choice(["Int64", "int64", "float32"]))
    if kind == "dates":
        return pd.Series(pd.to_datetime(["2020-01-01"] * num))
    cells = [None] * num if kind == "empty" else rng.choices(CELLS, k=num)
    return pd.Series(cells, dtype=object)


def table(rng: random.Random) -> RawTable:
    num = rng.choice([0, 1, 2, 5, 12])
    # Some stand twice.
    names = rng.choices(NAMES, k=rng.randint(1, 12))
    columns = [column(rng, num) for _ in names]
    if rng.random() < 0.7:
        names += ["N", "D", "loss"]
        columns += [pd.Series([10 ** rng.uniform(1, 9) for _ in range(num)]) for _ in range(3)]
    frame = pd.concat(columns, axis=1).set_axis(names, axis=1)
    file = SourceFile(name="f.csv", sha256="0" * 64, num_rows=num)
    return RawTable(frame=frame, files=(file,))


def options(rng: random.Random, names: list[str]) -> dict[str, Any]:
    some = {
        "columns": {
            rng.choice(["loss", "arch", "wall_s", "my_x", "seed", "status", "excluded_reason"]): (
                rng.choice(names) + rng.choice(["", " * 2", " / 0", " * N"])
            )
        },
        "run": rng.choice([*names, "file"]),
        "take": rng.choice(["best", "every"]),
        "parse": {rng.choice(names): rng.choice(["{arch}", "{_}{", "{arch}-{budget_flops}-N{_}"])},
        "where": (rng.choice(names) + rng.choice([" = ", "<"]) + rng.choice(["", "run1", "9M"]),),
        "budget_from": rng.choice(["flops", "auto"]),
        "loss_unit": rng.choice(["perplexity", "bits_per_byte", "acc"]),
        "flops_unit": "gflop",
    }
    return {name: value for name, value in some.items() if rng.random() < 0.15}


@pytest.mark.parametrize("seed", range(4))
def test_anything_becomes_runs_or_one_line(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    num_imported, refusals = 0, []
    for i in range(20):
        raw = table(rng)
        try:
            asked = ColumnMap(**options(rng, list(map(str, raw.frame.columns))))
            imported = import_table(raw, suggest(raw, asked).mapping)
        except UserError as error:
            refusals.append(str(error))
            continue
        num_imported += 1
        unit, out = imported.unit, tmp_path / str(i)
        selection = select_points(imported.rows, unit=unit)
        assert write_import(imported, raw, "f.csv", out)
        assert not write_import(imported, raw, "f.csv", out)
        assert select_points(load_rows(out / "runs.parquet"), unit=unit) == selection
    assert num_imported > 0
    assert not any("\n" in refusal for refusal in refusals)
