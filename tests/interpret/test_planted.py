"""A model that learned planted facts keeps them in the noun's gates; an untrained one has none."""

from __future__ import annotations

from typing import Any

import pytest

from interpret.made_facts import FACTS
from isoflop.interpret.activation_patching import CONTROLS, interventions
from isoflop.interpret.effects import INTERVENTION, effects
from isoflop.interpret.facts import Fact, make_pairs, make_prompts
from isoflop.interpret.load import LoadedRun, untrained

LAYERS = {"0": [0]}
Found = dict[str, dict[str, Any]]


def measured(loaded: LoadedRun) -> Found:
    given = [Fact(noun=noun, adjective=adjective) for noun, adjective in FACTS]
    pairs = make_pairs(make_prompts(given, loaded.tokenizer))
    rows = effects(interventions(loaded, pairs, layers=LAYERS))
    return {row["control"]: row for row in rows}


@pytest.fixture(scope="module")
def trained(facts_run: LoadedRun) -> Found:
    return measured(facts_run)


def test_the_model_knows_the_facts(trained: Found) -> None:
    assert trained[INTERVENTION]["accuracy_clean"] == 1.0
    assert trained[INTERVENTION]["n_excluded"] == 0


@pytest.mark.parametrize("control", CONTROLS)
def test_the_nouns_gates_do_more_than_every_control(trained: Found, control: str) -> None:
    assert trained[INTERVENTION]["nie_lo"] > trained[control]["nie_hi"]
    assert trained[control]["gap_lo"] > 0.05
    assert trained[INTERVENTION]["answers_cf_lo"] > trained[control]["answers_cf_hi"]


def test_an_untrained_model_shows_no_effect(facts_run: LoadedRun, trained: Found) -> None:
    found = measured(untrained(facts_run))
    own = found[INTERVENTION]
    assert own["effect_lo"] < 0 < own["effect_hi"]
    assert own["effect_hi"] < 0.1 * trained[INTERVENTION]["effect_lo"]
    assert own["accuracy_clean"] < 0.7
    for control in CONTROLS:
        assert found[control]["gap_lo"] < 0 < found[control]["gap_hi"]
