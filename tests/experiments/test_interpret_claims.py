"""The rules of the interpretability claims, and the table that is made by them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.made_scripts import EXPERIMENTS, script
from interpret.made_models import run_study, untrained_run, write_texts
from isoflop.interpret.load import LoadedRun
from isoflop.plan.artefact import read_plan
from isoflop.study.file import load_study
from isoflop.tables import read_table

rules = script("interpret_rules")
measures = script("interpret_measures")
claims = script("interpret_claims")

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
CONTROLS = ("random noun", "other position")


def seed(gap: float = 0.3, low: float = 0.1, accuracy: float = 1.0, best: int = 1) -> Any:
    """A model whose noun beats both controls by ``gap``."""
    return rules.SeedEffect(
        accuracy=accuracy,
        best_layer=best,
        nie=0.7,
        gaps=dict.fromkeys(CONTROLS, gap),
        gap_lows=dict.fromkeys(CONTROLS, low),
    )


SHOWS, FAILS = seed(), seed(gap=0.25, low=-0.1)


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [
        ([SHOWS] * 5, SUPPORTED),
        ([SHOWS] * 4 + [FAILS], SUPPORTED),
        ([SHOWS] * 3 + [FAILS] * 2, UNDECIDED),
        ([SHOWS] * 2 + [FAILS] * 3, UNDECIDED),
        ([SHOWS] + [FAILS] * 4, NOT_SUPPORTED),
        ([FAILS] * 5, NOT_SUPPORTED),
        # Four show it, but the fifth is so far on the other side that the mean is not above 0.
        ([SHOWS] * 4 + [seed(gap=-0.8, low=-0.9)], UNDECIDED),
        # Who does not know the facts shows nothing, and refutes nothing.
        ([SHOWS] * 3 + [seed(accuracy=0.89)] * 2, UNDECIDED),
        ([FAILS] * 3 + [seed(accuracy=0.89)] * 2, UNDECIDED),
        ([SHOWS] * 4 + [seed(gap=-0.8, low=-0.9, accuracy=0.5)], SUPPORTED),
    ],
)
def test_c8_goes_by_its_frozen_rule(seeds: list[Any], verdict: str) -> None:
    assert rules.judge_c8(seeds).verdict == verdict


def test_one_control_that_is_not_beaten_is_enough() -> None:
    one = dataclasses.replace(SHOWS, gap_lows={"random noun": 0.1, "other position": 0.0})
    assert not one.shows
    assert SHOWS.shows


def test_the_interval_over_seeds_is_students() -> None:
    # By hand: variance 0.01 of three values; t of 2 degrees of freedom 4.3027.
    seeds = [seed(gap=gap) for gap in (0.2, 0.3, 0.4)]
    mean, low, high = rules.pooled_gaps(seeds)["random noun"]
    half = 4.302653 * (0.01 / 3) ** 0.5
    assert (mean, low, high) == pytest.approx((0.3, 0.3 - half, 0.3 + half), rel=1e-6)
    assert rules.pooled_gaps(seeds[:1]) == {}


@pytest.mark.parametrize(
    ("best", "accuracy", "verdict"),
    [
        ([1, 1, 1, 1, 0], 1.0, SUPPORTED),
        ([1, 1, 0, 0, 2], 1.0, UNDECIDED),
        ([1, 0, 0, 0, 2], 1.0, NOT_SUPPORTED),
        ([1, 1, 1, 1, 1], 0.5, UNDECIDED),
    ],
)
def test_the_best_layer_is_the_second(best: list[int], accuracy: float, verdict: str) -> None:
    seeds = [seed(best=layer, accuracy=accuracy) for layer in best]
    assert rules.judge_c8_layer(seeds).verdict == verdict


def test_the_rules_of_the_study_are_about_its_models() -> None:
    study = load_study(EXPERIMENTS / "facts_tiny.toml")
    assert {hypothesis.id for hypothesis in study.hypotheses} == set(claims.C8_ARCHS)
    assert set(claims.C8_ARCHS.values()) == set(study.archs)
    assert not {0, 1} & set(study.seeds)


@pytest.mark.parametrize(
    ("least", "verdict"),
    [
        ([0.91, 0.99], SUPPORTED),
        ([0.90, 0.99], UNDECIDED),
        ([0.49, 0.99], UNDECIDED),
        ([0.49, 0.49, 0.99], NOT_SUPPORTED),
    ],
)
def test_collapse(least: list[float], verdict: str) -> None:
    assert rules.judge_usage(least).verdict == verdict


def test_all_none_and_some() -> None:
    assert rules.judge_clusters([True, True], 4, 4).verdict == SUPPORTED
    assert rules.judge_clusters([True, False], 4, 4).verdict == UNDECIDED
    assert rules.judge_clusters([False, False], 4, 4).verdict == NOT_SUPPORTED
    assert rules.judge_linearity({"a": 9e-6, "b": 1e-7}, 1).verdict == SUPPORTED
    assert rules.judge_linearity({"a": 1e-5, "b": 1e-7}, 1).verdict == NOT_SUPPORTED
    assert rules.judge_active({2: 0.002, 8: 0.0009}, {2: 0.001, 8: 0.0006}).verdict == UNDECIDED


def above(layer: int | None, **lows: float | None) -> list[dict[str, Any]]:
    controls = {
        "any": ("token", "shuffled", "untrained"),
        "same_token": ("chance", "shuffled", "untrained"),
    }
    return [
        measures.row(
            f"word_class, {pool}: gates above {space}",
            0.1,
            layer=layer,
            ci_lo=lows.get(f"{pool}_{space}", 0.01),
        )
        for pool, spaces in controls.items()
        for space in spaces
    ]


def test_clusters_must_beat_every_control_in_one_layer() -> None:
    assert measures.shows_clusters([*above(0, any_token=-0.01), *above(1)])
    assert not measures.shows_clusters(
        [*above(0, any_token=-0.01), *above(1, same_token_untrained=0.0)]
    )
    assert not measures.shows_clusters([*above(0, same_token_chance=None)])
    # Not of all layers side by side.
    assert not measures.shows_clusters(above(None))


def test_superposition_fails_where_a_layer_is_not_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = measures.linearity_rows(thinnable(untrained_run()))
    assert max(found["value"] for found in linear) < 1e-5
    assert {found["layer"] for found in linear} == {0, 1}
    bent = measures.linearity_rows(thinnable(untrained_run(activation="relu")))
    errors = {found["quantity"]: found["value"] for found in bent if found["layer"] == 0}
    assert errors["matrix error"] is None
    assert errors["superposition error"] > 0.01


def thinnable(loaded: LoadedRun) -> LoadedRun:
    """With held-out text that is taken as it is."""
    heldout: Any = loaded.heldout
    heldout.thinned = lambda most_tokens: heldout
    return loaded


def test_usage_is_of_all_channels_and_at_least_what_was_seen() -> None:
    def logged(step: int, split: str, channel: int | None, used: float) -> dict[str, Any]:
        shared = {"attempt": 1, "layer": 0, "num_experts": 8, "num_choices": 99, "ever_used": used}
        figures = {"fraction_used": 0.8, "entropy": used / 2, "cv": 1.0}
        return {"step": step, "split": split, "channel": channel, **shared, **figures}

    rows = [logged(s, "train", c, 0.1 * s) for s in (1, 4, 7) for c in (0, 1, None)]
    rows += [logged(7, "heldout", c, 0.7) for c in (0, 1, None)]
    found = {each["quantity"]: each["value"] for each in measures.usage_rows(rows)}
    assert found["ever used, at least"] == 0.8
    assert [found[f"entropy, {when}"] for when in ("first", "middle", "last")] == pytest.approx(
        [0.05, 0.2, 0.35]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one tiny run of mlp and sgatlin each."""
    base = tmp_path_factory.mktemp("claims")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_DATA_DIR", str(base / "data"))
        run_study(base / "study", write_texts(base / "texts"), archs=("mlp", "sgatlin"))
    return base / "study"


@pytest.fixture
def data(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFLOP_DATA_DIR", str(finished.parent / "data"))
    # Other tests keep their threads.
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


@pytest.mark.slow
def test_a_study_gets_the_same_table_twice(
    finished: Path, data: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert claims.main([str(finished)]) == 0
    path = finished / "claims.parquet"
    first = path.read_bytes()
    rows = read_table(path, claims.CLAIMS)
    verdicts = {r["claim"]: r["note"] for r in rows if r["quantity"] == "verdict"}
    assert set(verdicts) == {"C5", "C6", "C7", "C10"}
    assert verdicts["C6"] == SUPPORTED
    assert set(verdicts.values()) <= {SUPPORTED, NOT_SUPPORTED, UNDECIDED}
    (run,) = [r for r in read_plan(finished).unique_runs if r.arch == "sgatlin"]
    assert {r["run_id"] for r in rows if r["claim"] in ("C6", "C7", "C10")} == {run.run_id, None}
    assert "C6 verdict: supported" in capsys.readouterr().out
    assert claims.main([str(finished)]) == 0
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("asked", "said"), [("C8", "facts_tiny"), ("C6,C3", "C3"), ("", "--claims")]
)
def test_what_cannot_be_asked_is_one_line(
    asked: str, said: str, finished: Path, data: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "claims.parquet").unlink(missing_ok=True)
    assert claims.main([str(finished), "--claims", asked]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (finished / "claims.parquet").exists()
