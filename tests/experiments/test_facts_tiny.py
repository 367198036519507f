"""The committed study of planted facts: its verdicts and one model's effects come out again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.made_scripts import script
from isoflop.data.prepare import prepare
from isoflop.data.sources import PrepareOptions
from isoflop.interpret.load import open_run
from isoflop.plan.artefact import read_plan
from isoflop.tables import read_table

rules = script("interpret_rules")
measures = script("interpret_measures")
claims = script("interpret_claims")

STUDY = Path(__file__).resolve().parents[2] / "results" / "facts_tiny"
COMMITTED = "d71a719d1292"
CONTROLS = ("random noun", "other position", "random gates", "ablation")


@pytest.fixture(scope="module")
def table() -> list[dict[str, Any]]:
    return read_table(STUDY / "claims.parquet", claims.CLAIMS)


def test_the_verdicts_follow_from_the_measured_effects(table: list[dict[str, Any]]) -> None:
    plan = read_plan(STUDY)
    for hypothesis in plan.study.hypotheses:
        words = {r["quantity"]: r["note"] for r in table if r["claim"] == hypothesis.id}
        arch = claims.C8_ARCHS[hypothesis.id]
        runs = [run.run_id for run in plan.unique_runs if run.arch == arch]
        assert len(runs) == 5
        judge = rules.judge_c8_layer if hypothesis.id == "C8-layer" else rules.judge_c8
        found = judge([_seed(table, run) for run in runs])
        assert (words["verdict"], words["measured"]) == (found.verdict, found.measured)
        assert words["rule"] == hypothesis.decide


def _seed(table: list[dict[str, Any]], run_id: str) -> Any:
    """What the rows of a run say of it."""
    mine = {
        (r["layer"], r["quantity"]): r for r in table if (r["claim"], r["run_id"]) == ("C8", run_id)
    }
    own = {layer: r["value"] for (layer, name), r in mine.items() if name == "nie: counterfactual"}
    best = max(own, key=lambda layer: own[layer])
    gaps = {control: mine[best, f"gap: {control}"] for control in CONTROLS}
    return rules.SeedEffect(
        accuracy=mine[None, "accuracy"]["value"],
        best_layer=best,
        nie=own[best],
        gaps={control: row["value"] for control, row in gaps.items()},
        gap_lows={control: row["ci_lo"] for control, row in gaps.items()},
    )


def test_the_committed_model_has_the_effects_of_the_table(
    table: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFLOP_DATA_DIR", str(tmp_path / "data"))
    prepare("synthetic:tiny:0", "byte", None, options=PrepareOptions())
    # What the repository keeps of the run, and nothing else.
    kept = tmp_path / "study" / "runs" / COMMITTED
    for name in ("spec.json", "result.json", "usage.parquet"):
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(STUDY / "runs" / COMMITTED / name, kept / name)
    shutil.copytree(STUDY / "runs" / COMMITTED / "ckpt", kept / "ckpt")
    shutil.copy(STUDY / "plan.json", tmp_path / "study" / "plan.json")
    found = measures.fact_effects(open_run(tmp_path / "study", COMMITTED))
    stored = [r for r in table if r["claim"] == "C8" and (r["run_id"] or "").startswith(COMMITTED)]
    again = {(r["layer"], r["quantity"]): r["value"] for r in measures.effect_rows(found)}
    assert again == pytest.approx(
        {(r["layer"], r["quantity"]): r["value"] for r in stored}, abs=1e-3
    )
