"""The effects of interventions, over pairs: normalised indirect effect and rank flips.

Pairs share nouns, so they are no independent draws. Intervals are percentiles of a bootstrap over
nouns: each draw takes nouns with replacement, and a pair counts as often as its clean noun times as
often as its counterfactual noun was taken.

Letters: R draws, N nouns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoflop.arrays import Floats
from isoflop.interpret.interval import CONFIDENCE, Interval, interval_of
from isoflop.tables import Schema

INTERVENTION = "counterfactual"
"""The intervention itself; every other name is a control."""
MIN_TOTAL = 0.5
"""Nats of logit difference between a clean and a counterfactual prompt below which a pair has no
normalised effect: a quotient with next to nothing below the line is noise."""
NUM_DRAWS = 2000


INTERVENTIONS = Schema(
    table="interventions",
    columns=(
        ("clean_noun", "string"),
        ("clean_adjective", "string"),
        ("cf_noun", "string"),
        ("cf_adjective", "string"),
        ("layers", "string"),
        ("control", "string"),
        ("positions", "string"),
        ("d_clean", "float64"),
        ("d_cf", "float64"),
        ("d_int", "float64"),
        ("effect", "float64"),
        ("nie", "float64"),
        ("flip", "bool"),
        ("answers_cf", "bool"),
        ("correct_clean", "bool"),
        ("correct_cf", "bool"),
    ),
)

_MEASURES = ("nie", "gap", "effect", "flip", "answers_cf")
EFFECTS = Schema(
    table="effects",
    columns=(
        ("layers", "string"),
        ("control", "string"),
        ("n_pairs", "int64"),
        ("n_nouns", "int64"),
        ("n_excluded", "int64"),
        *((f"{name}{end}", "float64") for name in _MEASURES for end in ("", "_lo", "_hi")),
        ("accuracy_clean", "float64"),
        ("accuracy_cf", "float64"),
        ("confidence", "float64"),
        ("n_boot", "int64"),
    ),
)


def indirect_effect(d_clean: float, d_cf: float, d_int: float) -> dict[str, Any]:
    """Return the measures of one intervention (reference implementation, section "Knowledge").

    d is the logit of the clean answer minus that of the counterfactual one, after the clean
    prompt, the counterfactual prompt and the clean prompt with other gates. ``effect`` = d_clean -
    d_int, in nats. ``nie`` = effect / (d_clean - d_cf): 0 where nothing changed, 1 where the gates
    alone turn the answer; None where |d_clean - d_cf| is below :data:`MIN_TOTAL`. Gates that only
    destroy the clean answer leave d_int near 0, and so reach about a half. ``flip``: whether the
    counterfactual answer is ahead of the clean one after the intervention. A prompt is answered
    correctly where its own answer is ahead.
    """
    total, effect = d_clean - d_cf, d_clean - d_int
    return {
        "d_clean": d_clean,
        "d_cf": d_cf,
        "d_int": d_int,
        "effect": effect,
        "nie": effect / total if abs(total) >= MIN_TOTAL else None,
        "flip": d_int < 0,
        "correct_clean": d_clean > 0,
        "correct_cf": d_cf < 0,
    }


def effects(
    rows: Sequence[Mapping[str, Any]],
    *,
    n_boot: int = NUM_DRAWS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return rows of :data:`EFFECTS`: each set of layers and control, in the order of the rows.

    ``n_excluded`` of the ``n_pairs`` have no normalised effect; the other measures are means over
    all pairs. ``gap`` is by how much the normalised effect of the intervention is above that of
    the control in the same pair; None for the intervention itself.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in _with_gaps(rows):
        groups.setdefault((row["layers"], row["control"]), []).append(row)
    return [
        {"layers": layers, "control": control, **_aggregate(group, n_boot, confidence, seed)}
        for (layers, control), group in groups.items()
    ]


def _with_gaps(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    own = {_pair(row): row["nie"] for row in rows if row["control"] == INTERVENTION}
    return [{**row, "gap": _gap(row, own.get(_pair(row)))} for row in rows]


def _pair(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["layers"], row["clean_noun"], row["cf_noun"]


def _gap(row: Mapping[str, Any], intervention: float | None) -> float | None:
    if row["control"] == INTERVENTION or row["nie"] is None or intervention is None:
        return None
    return intervention - float(row["nie"])


def _aggregate(
    rows: Sequence[Mapping[str, Any]], n_boot: int, confidence: float, seed: int
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "n_pairs": len(rows),
        "n_nouns": len({row[noun] for row in rows for noun in ("clean_noun", "cf_noun")}),
        "n_excluded": sum(row["nie"] is None for row in rows),
    }
    for name in _MEASURES:
        found = mean_interval(rows, name, n_boot=n_boot, confidence=confidence, seed=seed)
        values |= {name: found.value, f"{name}_lo": found.lo, f"{name}_hi": found.hi}
    for name in ("clean", "cf"):
        values[f"accuracy_{name}"] = float(np.mean([row[f"correct_{name}"] for row in rows]))
    return {**values, "confidence": confidence, "n_boot": n_boot}


def mean_interval(
    rows: Sequence[Mapping[str, Any]],
    name: str,
    *,
    n_boot: int = NUM_DRAWS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Return the mean of a column over the pairs that have it, and its interval over nouns.

    Args:
        rows: of :data:`INTERVENTIONS`, one for each ordered pair of nouns.
        name: the column.
        n_boot: draws of nouns.
        confidence: share of the draws within the interval.
        seed: of the draws; the same nouns are drawn for every column and control.
    """
    value_NN = _matrix(rows, name)
    has_NN = np.isfinite(value_NN)
    if not has_NN.any():
        return Interval(value=None)
    mean = float(value_NN[has_NN].mean())
    num = len(value_NN)
    draws = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=n_boot)
    taken_RN = draws.astype(np.float64)
    weight_R = _weighted(taken_RN, has_NN.astype(np.float64))
    sum_R = _weighted(taken_RN, np.where(has_NN, value_NN, 0.0))
    # A draw of few nouns may hold no pair.
    lost_R = np.full_like(sum_R, np.nan)
    mean_R = np.divide(sum_R, weight_R, out=lost_R, where=weight_R > 0)
    return interval_of(mean, mean_R, confidence)


def _weighted(taken_RN: Floats, value_NN: Floats) -> Floats:
    """Return the sum over pairs of their values, each as often as both nouns were taken."""
    result: Floats = ((taken_RN @ value_NN) * taken_RN).sum(axis=1)
    return result


def _matrix(rows: Sequence[Mapping[str, Any]], name: str) -> Floats:
    """Return values by clean and counterfactual noun, NaN where there is none."""
    nouns = sorted({row[noun] for row in rows for noun in ("clean_noun", "cf_noun")})
    number = {noun: index for index, noun in enumerate(nouns)}
    value_NN = np.full((len(nouns), len(nouns)), math.nan)
    for row in rows:
        if row[name] is not None:
            value_NN[number[row["clean_noun"]], number[row["cf_noun"]]] = row[name]
    return value_NN
