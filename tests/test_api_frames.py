"""The frames of the Python API: their dtypes, and what is made of them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pandas as pd

import isoflop
from isoflop.analysis.compare.multipliers import COMPARE
from isoflop.api.frames import runs_frame

QUICK = Path(__file__).resolve().parents[1] / "results" / "quickstart"


def test_dtypes_of_runs() -> None:
    rows = [
        {"arch": "a", "n_params": 1e6, "seed": 0, "status": "done", "metric_acc": None, "x": True},
        {
            "arch": None,
            "n_params": 0.5,
            "seed": None,
            "status": None,
            "metric_acc": 0.5,
            "x": None,
        },
        {"n_tokens": 2.0**60, "excluded_reason": "mine", "flops_other": None, "tag": "v1"},
    ]
    frame = runs_frame(rows, "val_bpb")
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        "arch": "category",
        "n_params": "float64",
        "n_tokens": "float64",
        "seed": "Int64",
        "status": "category",
        "excluded_reason": "string",
        "metric_acc": "float64",
        "x": "boolean",
        "tag": "category",
    }
    assert frame.seed.tolist() == [0, pd.NA, pd.NA]
    assert frame.attrs == {"loss_unit": "val_bpb"}


def test_what_was_spent_is_a_number_and_only_where_trunks_are_shared() -> None:
    rows = [{"arch": "a", "flops_spent": None, "wall_s_spent": None}, {"arch": "b"}]
    assert list(runs_frame(rows, "nats").columns) == ["arch"]
    rows[1] |= {"flops_spent": 2e10, "wall_s_spent": 3.5}
    frame = runs_frame(rows, "nats")
    assert {str(frame[name].dtype) for name in ("flops_spent", "wall_s_spent")} == {"float64"}
    assert frame.flops_spent.isna().tolist() == [True, False]


def test_compare_gives_plain_frames() -> None:
    compare = isoflop.load(QUICK).compare
    made = {
        "query": compare.query("resource == 'flops'"),
        "copy": compare.copy(),
        "deepcopy": copy.deepcopy(compare),
        "pickle": pickle.loads(pickle.dumps(compare)),
        "slice": compare[compare.arch == "mlp"],
        "merge": compare.merge(compare[["arch"]].drop_duplicates(), on="arch"),
        "assign": compare.assign(more=1),
        "concat": pd.concat([compare, compare]),
        "head": compare.head(),
        "call": compare(resources=["flops"]),
    }
    assert {name for name, frame in made.items() if type(frame) is not pd.DataFrame} == set()
    assert made["pickle"].equals(pd.DataFrame(compare))
    assert repr(compare) == repr(compare.copy())
    assert set(made["call"].resource) == {"flops"}
    assert set(compare.columns) == set(COMPARE.names)
    for frame in (made["query"], made["pickle"]):
        assert frame.attrs == {"loss_unit": "nats_per_token"}
