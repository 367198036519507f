"""What interpret_claims.py measures in one model or run, with the functions of isoflop.interpret.

Rows are (layer, quantity, value, ci_lo, ci_hi, n, note). Letters: T tokens, P patterns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from interpret_rules import SeedEffect

from isoflop.data.tokenizers import PAD_ID
from isoflop.data.windows import HeldoutWindows, shift_right
from isoflop.families import get_spec
from isoflop.interpret.activation_patching import interventions
from isoflop.interpret.attribution import Trace, trace
from isoflop.interpret.effects import INTERVENTION, effects
from isoflop.interpret.facts import make_pairs, make_prompts, planted
from isoflop.interpret.gates import Patch, patched_gates
from isoflop.interpret.geometry.analyse import cka_of_both
from isoflop.interpret.geometry.patterns import (
    Activations,
    TokenRows,
    activations_of,
    input_embedding,
)
from isoflop.interpret.geometry.purity import as_labels
from isoflop.interpret.geometry.purity_tests import Settings, purity_rows, verdict_rows
from isoflop.interpret.geometry.word_class import classes_of
from isoflop.interpret.linear import linearity
from isoflop.interpret.load import LoadedRun, untrained
from isoflop.interpret.usage import over_training
from isoflop.train.routing import gated_modules

SEED = 0
LINEAR_TOKENS = 2048
CLUSTER_TOKENS = 3000
NUM_SHUFFLES = 20
CLUSTER_LABEL = "word_class"
CLUSTER_CONTROLS = {
    "any": ("token", "shuffled", "untrained"),
    "same_token": ("chance", "shuffled", "untrained"),
}
"""What C7 asks gates to be purer than, by pool of neighbours."""

Row = dict[str, Any]


def row(quantity: str, value: float | None, **rest: Any) -> Row:
    """Return a row of a measurement."""
    empty = dict.fromkeys(("layer", "ci_lo", "ci_hi", "n", "note"))
    return {**empty, "quantity": quantity, "value": value, **rest}


def active_shares(family: str, config: Any, d_model: int) -> tuple[float, float]:
    """Return a layer's active share of parameters: with the router, and of the experts alone."""
    spec = get_spec(family)
    (experts,) = (part for part in spec.ledger(config, d_model, 1) if part.name == "experts")
    whole = spec.num_active_params(config, d_model) / spec.num_params(config, d_model)
    return whole, experts.num_active_params / experts.num_params


def linearity_rows(loaded: LoadedRun) -> list[Row]:
    """Return, for C6, the errors of each layer on held-out text."""
    inputs_BT = _inputs(_thinned(loaded, LINEAR_TOKENS))
    traced = trace(loaded.model, inputs_BT)
    checks = linearity(loaded.model, traced.x, traced.y, traced.idx, traced.score)
    rows = []
    for check in checks:
        place = {"layer": check.layer, "n": check.num_tokens}
        rows += [
            row("matrix error", check.matrix_error, **place),
            row("sum error", check.sum_error, **place),
            row("superposition error", superposition_error(loaded, traced, check.layer), **place),
        ]
    return rows


@torch.no_grad()
def superposition_error(loaded: LoadedRun, traced: Trace, layer: int) -> float:
    """Return how far y(2 a - b) is from 2 y(a) - y(b) under the same gates, as linearity does.

    a are the layer's inputs, b those of the tokens before; the layer itself computes all three.
    """
    module, a_TD = gated_modules(loaded.model)[layer], traced.x[layer]
    b_TD = a_TD.roll(1, dims=0)
    held = Patch(
        positions=range(len(a_TD)), idx_PCK=traced.idx[layer], score_PCK=traced.score[layer]
    )
    with patched_gates(loaded.model, {layer: held}):
        mixed_TD, of_a_TD, of_b_TD = (module(x_TD) for x_TD in (2 * a_TD - b_TD, a_TD, b_TD))
    distance_T = torch.linalg.vector_norm(mixed_TD - (2 * of_a_TD - of_b_TD), dim=1)
    scale = torch.linalg.vector_norm(mixed_TD, dim=1).square().mean().sqrt()
    return float(distance_T.max() / scale)


def cluster_rows(loaded: LoadedRun) -> list[Row]:
    """Return, for C7, purities of gates and controls, verdicts, and CKA to the embeddings."""
    loaded = replace(loaded, heldout=_thinned(loaded, CLUSTER_TOKENS))
    tokens = _token_rows(loaded)
    seen, blank = activations_of(loaded, tokens), activations_of(untrained(loaded), tokens)
    labels = {
        CLUSTER_LABEL: as_labels(classes_of(loaded, tokens)),
        "next_token": tokens.target_P,
    }
    settings = Settings(seed=SEED)
    purities = purity_rows(seen, blank, labels, input_embedding(loaded), settings)
    verdicts = [
        row(f"{found['label']} verdict", None, layer=found["layer"], note=found["verdict"])
        for found in verdict_rows(purities)
    ]
    return [*_purity_rows(purities), *verdicts, *_cka_rows(loaded, seen, blank)]


def shows_clusters(rows: Sequence[Row]) -> bool:
    """Return whether a layer's gates are purer in word class than all controls that C7 names."""
    low = {(found["layer"], found["quantity"]): found["ci_lo"] for found in rows}
    layers = {found["layer"] for found in rows if found["layer"] is not None}
    wanted = [
        _above_name(CLUSTER_LABEL, pool, space)
        for pool, spaces in CLUSTER_CONTROLS.items()
        for space in spaces
    ]
    return any(
        all((bound := low[layer, name]) is not None and bound > 0 for name in wanted)
        for layer in layers
    )


def is_layer_verdict(found: Row) -> bool:
    """Return whether a row is the library's verdict on the word class of one layer."""
    return found["quantity"] == f"{CLUSTER_LABEL} verdict" and found["layer"] is not None


def _above_name(label: str, pool: str, space: str) -> str:
    return f"{label}, {pool}: gates above {space}"


def _purity_rows(purities: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for found in purities:
        place = {"layer": found["layer"], "n": found["num_tokens"]}
        label, pool, space = found["label"], found["pool"], found["space"]
        ends = {"ci_lo": found["ci_lo"], "ci_hi": found["ci_hi"]}
        yield row(f"{label}, {pool}: {space}", found["purity"], **place, **ends)
        if space != "gates":
            ends = {"ci_lo": found["gates_above_lo"], "ci_hi": found["gates_above_hi"]}
            name = _above_name(label, pool, space)
            yield row(name, found["gates_above"], **place, **ends)


def _cka_rows(loaded: LoadedRun, seen: Activations, blank: Activations) -> Iterator[Row]:
    """Yield CKA of whole layers; ``note`` is the 95th percentile of shuffled rows."""
    found = cka_of_both(loaded, seen.patterns, blank.patterns, num_shuffles=NUM_SHUFFLES, seed=SEED)
    for each in found:
        if each["channel"] is None:
            place = {"layer": each["layer"], "n": each["num_tokens"]}
            name = f"cka, {each['model']}"
            yield row(name, each["cka"], **place)
            yield row(f"{name}: shuffled mean", each["shuffled_mean"], **place)
            yield row(f"{name}: shuffled 95th", each["shuffled_hi"], **place)


def fact_effects(loaded: LoadedRun) -> list[dict[str, Any]]:
    """Return rows of isoflop.interpret.effects.EFFECTS for each single layer and control."""
    assert loaded.data is not None
    pairs = make_pairs(make_prompts(planted(loaded.data), loaded.tokenizer), seed=SEED)
    layers = {str(layer): [layer] for layer in range(loaded.spec.n_layers)}
    return effects(interventions(loaded, pairs, layers=layers, seed=SEED), seed=SEED)


def effect_rows(found: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Return, for C8, effects of each layer and control with their intervals over nouns."""
    for each in found:
        place = {"layer": int(each["layers"]), "n": each["n_pairs"]}
        for name in ("nie", "gap", "effect", "flip", "answers_cf"):
            if each[name] is not None:
                ends = {"ci_lo": each[f"{name}_lo"], "ci_hi": each[f"{name}_hi"]}
                yield row(f"{name}: {each['control']}", each[name], **place, **ends)
    yield row("accuracy", found[0]["accuracy_clean"], n=found[0]["n_pairs"])


def seed_effect(found: Sequence[Mapping[str, Any]]) -> SeedEffect:
    """Return the effects in the layer whose gates at the noun have the highest effect."""
    own = [each for each in found if each["control"] == INTERVENTION]
    best = max(own, key=lambda each: each["nie"])
    controls = [
        each
        for each in found
        if each["layers"] == best["layers"] and each["control"] != INTERVENTION
    ]
    return SeedEffect(
        accuracy=best["accuracy_clean"],
        best_layer=int(best["layers"]),
        nie=best["nie"],
        gaps={each["control"]: each["gap"] for each in controls},
        gap_lows={each["control"]: each["gap_lo"] for each in controls},
    )


def usage_rows(logged: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """Return, for C10, each layer's usage at the end, and at the first, middle and last step."""
    whole = {each["layer"] for each in logged if each["channel"] is None}
    ever = over_training(logged, "ever_used")
    for layer, points in ever.items():
        heldout = [
            each
            for each in logged
            if each["split"] == "heldout"
            and each["layer"] == layer
            and (each["channel"] is None or layer not in whole)
        ][-1]
        num = heldout["num_experts"]
        at_least = max(points[-1][1], heldout["fraction_used"])
        yield row("ever used, at least", at_least, layer=layer, n=num)
        for name in ("fraction_used", "entropy", "cv"):
            yield row(f"{name}, held-out", heldout[name], layer=layer, n=num)
        for name in ("ever_used", "entropy", "cv"):
            course = over_training(logged, name)[layer]
            for place, (step, value) in zip(
                ("first", "middle", "last"),
                (course[0], course[len(course) // 2], course[-1]),
                strict=True,
            ):
                yield row(f"{name}, {place}", value, layer=layer, n=num, note=f"step {step}")


def _thinned(loaded: LoadedRun, most_tokens: int) -> HeldoutWindows:
    assert loaded.heldout is not None
    return loaded.heldout.thinned(most_tokens)


def _inputs(heldout: HeldoutWindows) -> torch.Tensor:
    """Return whole windows [B, T]: a padded one has tokens that no text has."""
    whole = heldout.tokens[(heldout.tokens != PAD_ID).all(axis=1)]
    return torch.from_numpy(shift_right(whole, heldout.begin_id).astype(np.int64))


def _token_rows(loaded: LoadedRun) -> TokenRows:
    """Return the held-out tokens but the first of each window, whose input is no text."""
    assert loaded.heldout is not None
    target_WT = loaded.heldout.tokens
    input_WT = shift_right(target_WT, loaded.heldout.begin_id)
    is_text_WT = target_WT != PAD_ID
    is_text_WT[:, 0] = False
    window_P, position_P = np.nonzero(is_text_WT)
    return TokenRows(
        document_P=loaded.heldout.document_index[window_P],
        window_P=window_P,
        position_P=position_P,
        input_P=input_WT[is_text_WT].astype(np.int64),
        target_P=target_WT[is_text_WT].astype(np.int64),
    )
