"""Metrics by hand, the layout of pairs, and that a patch changes what it should and no more."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interpret.made_facts import FACTS
from isoflop.data.tokenizers import get_tokenizer
from isoflop.errors import UserError
from isoflop.interpret import activation_patching
from isoflop.interpret.activation_patching import (
    ABLATION,
    CONTROLS,
    OTHER_POSITION,
    interventions,
    layer_sets,
)
from isoflop.interpret.effects import (
    EFFECTS,
    INTERVENTION,
    INTERVENTIONS,
    effects,
    indirect_effect,
    mean_interval,
)
from isoflop.interpret.facts import Fact, Pair, make_pairs, make_prompts
from isoflop.interpret.figures import save_effects
from isoflop.interpret.gates import Patch, patched_gates, recorded_gates
from isoflop.interpret.load import LoadedRun
from isoflop.tables import read_table, write_table


def facts(*pairs: tuple[str, str]) -> list[Fact]:
    return [Fact(noun=noun, adjective=adjective) for noun, adjective in pairs]


@pytest.fixture(scope="module")
def pairs(facts_run: LoadedRun) -> list[Pair]:
    return make_pairs(make_prompts(facts(*FACTS), facts_run.tokenizer), max_pairs=40)


@pytest.fixture(scope="module")
def rows(facts_run: LoadedRun, pairs: list[Pair]) -> list[dict[str, Any]]:
    return interventions(facts_run, pairs)


@pytest.mark.parametrize(
    ("d_clean", "d_cf", "d_int", "nie", "flip"),
    [
        (4.0, -6.0, 4.0, 0.0, False),
        (4.0, -6.0, -6.0, 1.0, True),
        (4.0, -6.0, 1.5, 0.25, False),
        (4.0, -6.0, 6.0, -0.2, False),
        (0.2, 0.1, 0.3, None, False),
        # A model that has the pair the wrong way round is measured all the same.
        (-1.0, 1.0, 0.0, 0.5, False),
    ],
)
def test_measures_by_hand(
    d_clean: float, d_cf: float, d_int: float, nie: float | None, flip: bool
) -> None:
    found = indirect_effect(d_clean, d_cf, d_int)
    assert found["nie"] == pytest.approx(nie)
    assert found["effect"] == pytest.approx(d_clean - d_int)
    assert (found["flip"], found["correct_clean"]) == (flip, d_clean > 0)
    assert found["correct_cf"] == (d_cf < 0)


def row(clean: str, cf: str, nie: float | None, control: str = INTERVENTION) -> dict[str, Any]:
    measures = indirect_effect(4.0, -6.0, 4.0) | {"nie": nie, "answers_cf": False}
    names = {"clean_noun": clean, "cf_noun": cf, "layers": "0", "control": control}
    return names | measures


def test_pairs_without_a_total_effect_are_counted_and_left_out() -> None:
    found = effects([row("a", "b", 0.5), row("b", "a", None), row("a", "c", 0.1)])[0]
    assert (found["n_pairs"], found["n_excluded"], found["n_nouns"]) == (3, 1, 3)
    assert found["nie"] == pytest.approx(0.3)
    none = effects([row("a", "b", None)])[0]
    assert (none["nie"], none["nie_lo"], none["nie_hi"]) == (None, None, None)
    assert none["accuracy_clean"] == none["accuracy_cf"] == 1.0


def test_the_gap_compares_within_a_pair() -> None:
    given = [row("a", "b", 0.9), row("b", "a", 0.5), row("a", "b", 0.2, ABLATION)]
    own, control = effects(given)
    assert own["gap"] is None
    assert control["gap"] == pytest.approx(0.7)


def test_the_bootstrap_draws_nouns() -> None:
    # Every pair has one value, and so every draw.
    nouns = [f"n{i}" for i in range(6)]
    ordered = list(itertools.permutations(nouns, 2))
    same = mean_interval([row(a, b, 0.25) for a, b in ordered], "nie")
    assert (same.value, same.lo, same.hi) == pytest.approx((0.25, 0.25, 0.25))
    # The value is that of the clean noun: six independent draws, whatever the number of pairs.
    value = dict(zip(nouns, np.linspace(-1, 1, 6), strict=True))
    found = mean_interval([row(a, b, value[a]) for a, b in ordered], "nie", n_boot=4000)
    assert found.lo is not None
    assert found.hi is not None
    by_nouns = 2 * 1.96 * np.std(list(value.values())) / np.sqrt(6)
    by_pairs = 2 * 1.96 * np.std(list(value.values())) / np.sqrt(30)
    assert found.hi - found.lo > 1.5 * by_pairs
    assert found.hi - found.lo == pytest.approx(by_nouns, rel=0.25)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    nouns = [f"n{i}" for i in range(16)]
    covered = 0
    for _ in range(100):
        a, b = rng.normal(size=(2, 16))
        given = [
            row(nouns[i], nouns[j], a[i] + b[j]) for i, j in itertools.permutations(range(16), 2)
        ]
        found = mean_interval(given, "nie", n_boot=200)
        assert found.lo is not None
        assert found.hi is not None
        covered += found.lo <= 0 <= found.hi
    assert 88 <= covered <= 100


def test_prompts_in_bytes() -> None:
    prompt = make_prompts(facts(("oak", "tall")), get_tokenizer("byte"))[0]
    assert bytes(prompt.tokens[1:]) == b"The oak was tall"
    assert bytes(prompt.tokens[slice(*prompt.noun)]) == b" oak"
    assert bytes(prompt.tokens[prompt.answer :]) == b" tall"


def test_answers_are_read_where_they_first_differ() -> None:
    tokenizer = get_tokenizer("byte")
    found = make_pairs(make_prompts(facts(("oak", "tall"), ("elm", "tame")), tokenizer))
    assert len(found) == 2
    assert bytes(found[0].clean.tokens[1 : found[0].read + 1]) == b"The oak was ta"
    assert chr(found[0].clean_answer) + chr(found[0].cf_answer) == "lm"
    assert found[0].third is None


@pytest.mark.parametrize(
    "given",
    [
        [("oak", "tall")],
        [("oak", "tall"), ("willow", "old")],
        [("oak", "tall"), ("elm", "tall")],
        # One adjective is the beginning of the other: they do not differ within both.
        [("oak", "tall"), ("elm", "taller")],
    ],
)
def test_facts_that_make_no_pair_are_refused(given: list[tuple[str, str]]) -> None:
    with pytest.raises(UserError, match="give more facts"):
        make_pairs(make_prompts(facts(*given), get_tokenizer("byte")))


def test_the_third_noun_has_an_adjective_of_its_own(pairs: list[Pair]) -> None:
    assert len(pairs) == 40
    for pair in pairs:
        assert pair.third is not None
        assert len({p.fact.adjective for p in (pair.clean, pair.cf, pair.third)}) == 3
        assert not set(pair.elsewhere) & {*pair.noun, pair.read}
        assert len(set(pair.elsewhere)) == len(pair.noun)


def test_sets_of_layers() -> None:
    assert {name: list(layers) for name, layers in layer_sets(3).items()} == {
        "0": [0], "1": [1], "2": [2], "0-1": [0, 1], "0-2": [0, 1, 2],
    }  # fmt: skip


def test_a_layers_own_gates_change_nothing_to_the_last_bit(facts_run: LoadedRun) -> None:
    model = facts_run.model
    tokens_BT = torch.from_numpy(facts_run.tokenizer.encode("The oak was")[None].astype(int))
    with recorded_gates(model) as gates:
        before = model(tokens_BT)
    patches = {
        layer: Patch(positions=[2, 5], idx_PCK=idx[[2, 5]], score_PCK=score[[2, 5]])
        for layer, (idx, score) in enumerate(zip(gates.idx, gates.score, strict=True))
    }
    with patched_gates(model, patches):
        assert torch.equal(model(tokens_BT), before)


def test_patching_a_noun_with_itself_has_no_effect(
    facts_run: LoadedRun, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        activation_patching._Batch, "_make_changes",
        lambda batch: iter([("self", batch._change([0], batch._clean))]),
    )  # fmt: skip
    found = interventions(facts_run, pairs[:1], layers={"all": [0, 1]})
    assert [row["effect"] for row in found] == [0.0]


def test_gates_of_the_last_layer_reach_no_later_token(
    rows: list[dict[str, Any]],
) -> None:
    # What the last layer writes at the noun is seen by no later position.
    last = [row for row in rows if row["layers"] == "1"]
    assert last
    assert all(row["effect"] == 0.0 for row in last)
    first = [row for row in rows if row["layers"] == "0" and row["control"] == INTERVENTION]
    assert all(row["effect"] != 0.0 for row in first)


def test_batches_do_not_matter(
    facts_run: LoadedRun, pairs: list[Pair], rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(activation_patching, "BATCH_PAIRS", 7)
    again = interventions(facts_run, pairs)
    key = ("clean_noun", "cf_noun", "layers", "control")
    fixed = {INTERVENTION, OTHER_POSITION, ABLATION}
    wanted = {tuple(r[k] for k in key): r["d_int"] for r in rows if r["control"] in fixed}
    found = {tuple(r[k] for k in key): r["d_int"] for r in again if r["control"] in fixed}
    assert found == pytest.approx(wanted, abs=1e-4)


def test_every_pair_has_every_control(rows: list[dict[str, Any]]) -> None:
    names = [(row["layers"], row["control"]) for row in rows]
    wanted = set(itertools.product(layer_sets(2), (INTERVENTION, *CONTROLS)))
    assert set(names) == wanted
    assert all(names.count(name) == 40 for name in wanted)


def test_tables_and_figure(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    aggregates = effects(rows, n_boot=50)
    for table, schema in ((rows, INTERVENTIONS), (aggregates, EFFECTS)):
        write_table(tmp_path / schema.table, table, schema)
        assert read_table(tmp_path / schema.table, schema) == table
    png, svg = save_effects(aggregates, tmp_path)
    assert png.stat().st_size > 10_000
    assert "random noun" in svg.read_text()
