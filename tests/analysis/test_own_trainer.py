"""Results of trainers of one's own: other units, named metrics, declared and counted FLOPs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from command import isoflop
from isoflop.accounting.count import Count
from isoflop.accounting.ledger import Component
from isoflop.analysis import FitOptions, Fits, fit_optima, load_rows, select_points
from isoflop.analysis.compare.multipliers import COMPARE, compare_archs
from isoflop.analysis.figures import draw_page
from isoflop.analysis.fit import write_tables
from isoflop.analysis.refine import propose
from isoflop.analysis.report import make_document
from isoflop.analysis.report.renderers import markdown_page
from isoflop.analysis.report.source import source_of
from isoflop.analysis.validity.conventions import convention_findings
from isoflop.analysis.validity.finding import Finding
from isoflop.cli.optima import optima_rows
from isoflop.launch.collect import collected_rows
from isoflop.plan import own
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun
from isoflop.tables import UNIT_KEY, loss_unit, runs_schema, write_table
from made_own_results import BUDGETS, SIZES, make_plan_of, nats, write_results, write_runs

UNITS: dict[str, Callable[[PlannedRun], float]] = {
    "nats_per_token": nats,
    "bits_per_byte": lambda run: nats(run) / math.log(2) / 4.2,
    "val_err": lambda run: 1 - (1 - nats(run) / 10),
}


def fits_of(rows: list[dict[str, Any]], unit: str) -> Fits:
    options = FitOptions(n_boot=20, reference="plain")
    fits = fit_optima(select_points(rows, unit=unit), options, methods=(options.method,))
    return dataclasses.replace(fits, compare=compare_archs(fits))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    made = {}
    for unit in UNITS:
        folder = tmp_path_factory.mktemp(unit) / "study"
        result = {"unit": unit, "metrics": {"hellaswag": "acc"}}
        made[str(folder)] = make_plan_of(folder, result=result)
    return made


@pytest.fixture(scope="module")
def tables(plans: dict[str, Plan]) -> dict[str, Path]:
    """The folder of a study with all results, by unit."""
    found = {}
    for name, plan in plans.items():
        folder, unit = Path(name), plan.study.loss_unit
        write_runs(folder, plan, UNITS[unit], lambda run: {"hellaswag": run.size / 10})
        found[unit] = folder
    return found


@pytest.fixture(scope="module")
def fitted(tables: dict[str, Path]) -> dict[str, Fits]:
    return {unit: fits_of(load_rows(folder), unit) for unit, folder in tables.items()}


def test_optima_and_multipliers_do_not_depend_on_the_unit(fitted: dict[str, Fits]) -> None:
    usual = fitted["nats_per_token"]
    for unit, scale in {"bits_per_byte": 1 / math.log(2) / 4.2, "val_err": 0.1}.items():
        fits = fitted[unit]
        for one, other in zip(usual.optima, fits.optima, strict=True):
            assert (one.status, other.status) == ("interior", "interior")
            assert one.x_opt is not None
            assert one.loss_opt is not None
            assert other.x_opt == pytest.approx(one.x_opt, rel=1e-9)
            assert other.ci_lo == pytest.approx(one.ci_lo, rel=1e-9)
            assert other.loss_opt == pytest.approx(one.loss_opt * scale, rel=1e-9)
        for row, same in zip(usual.compare, fits.compare, strict=True):
            assert (row.status, row.order_claimed) == (same.status, same.order_claimed)
            if row.multiplier is not None:
                assert same.multiplier == pytest.approx(row.multiplier, rel=1e-9)
                assert same.ci_hi == pytest.approx(row.ci_hi, rel=1e-9)
        gains = [c.multiplier for c in fits.compare if (c.arch, c.resource) == ("gated", "flops")]
        assert gains == pytest.approx([4 / 3] * 3, rel=0.02)


def test_runs_tell_unit_metrics_and_declared_flops(tables: dict[str, Path]) -> None:
    for unit, folder in tables.items():
        path = folder / "runs.parquet"
        metadata = pq.read_schema(path).metadata
        assert metadata.get(UNIT_KEY) == (None if unit == "nats_per_token" else unit.encode())
        assert loss_unit(path) == unit
        rows = load_rows(path)
        assert {row["declared"] for row in rows} == {True}
        assert all(row["metric_hellaswag"] == row["size"] / 10 for row in rows)
        assert all(row["flops_head"] is None and row["d_model"] is None for row in rows)


def test_results_without_their_folders_keep_metrics(tmp_path: Path) -> None:
    plan = make_plan_of(tmp_path / "study", budgets=BUDGETS[:1], result={"unit": "val_err"})
    runs = tmp_path / "study" / "runs"
    write_results(tmp_path / "study", plan, metrics=lambda run: {"acc": 0.5, "only": run.size})
    table = tmp_path / "study" / "runs.parquet"
    found = collected_rows(tmp_path / "study", plan)
    write_table(table, found, runs_schema(found, plan.study.loss_unit))
    runs.rename(tmp_path / "away")
    rows = collected_rows(tmp_path / "study", plan)
    assert {(row["status"], row["metric_acc"]) for row in rows} == {("done", 0.5)}
    assert loss_unit(table) == "val_err"


def test_every_table_of_a_fit_tells_unit_and_declared_flops(
    fitted: dict[str, Fits], tmp_path: Path
) -> None:
    for path in write_tables(fitted["val_err"], tmp_path):
        table = pq.read_table(path)
        assert table.schema.metadata[UNIT_KEY] == b"val_err", path
        if table.num_rows:
            assert set(table["declared"].to_pylist()) == {True}, path


def test_one_declared_arch_marks_only_its_own_rows(fitted: dict[str, Fits], tmp_path: Path) -> None:
    groups = {
        key: tuple(dataclasses.replace(p, declared=p.arch == "gated") for p in points)
        for key, points in fitted["val_err"].groups.items()
    }
    fits = fitted["val_err"]
    fits = dataclasses.replace(fits, selection=dataclasses.replace(fits.selection, groups=groups))
    write_tables(fits, tmp_path)
    rows = pq.read_table(tmp_path / "optima.parquet").to_pylist()
    assert {(row["arch"], row["declared"]) for row in rows} == {("gated", True), ("plain", False)}
    rows = pq.read_table(tmp_path / f"{COMPARE.table}.parquet").to_pylist()
    assert {(r["arch"], r["declared"]) for r in rows} == {("gated", True), ("plain", False)}


def page_of(folder: Path, fits: Fits) -> str:
    source = source_of(folder / "runs.parquet", load_rows(folder))
    return markdown_page(make_document(fits, source)).replace("\\", "")


def test_the_report_speaks_of_the_unit_and_of_what_is_declared(
    tables: dict[str, Path], fitted: dict[str, Fits]
) -> None:
    page = page_of(tables["val_err"], fitted["val_err"])
    assert "The loss is val_err, of which less is better" in page
    assert "FLOPs and parameters are declared, not counted: gated, plain." in page
    assert "| gated † |" in page
    assert "for the same val_err" in page
    assert "Metrics of the run of lowest val_err of each family and budget" in page
    assert "| Batch size (tokens) | 64 |" in page
    assert "| Command | {python} train.py {depth} {steps} {seed} {result} |" in page
    for word in ("erplexity", "nats", "paper-v1", "sotu", "recipe's", "held-out set"):
        assert word not in page, word
    page = page_of(tables["bits_per_byte"], fitted["bits_per_byte"])
    assert "Losses are in bits per byte." in page
    assert "| Loss (bits per byte) |" in page
    assert "erplexity" not in page
    page = page_of(tables["nats_per_token"], fitted["nats_per_token"])
    assert "| Perplexity |" in page
    assert "Losses are in" not in page


def test_a_table_away_from_its_plan_tells_what_it_knows(
    tables: dict[str, Path], fitted: dict[str, Fits], tmp_path: Path
) -> None:
    (tmp_path / "runs.parquet").write_bytes((tables["val_err"] / "runs.parquet").read_bytes())
    page = page_of(tmp_path, fitted["val_err"])
    assert (
        "| Recipe (optimizer, learning rate, schedule) | the trainer's own, by its command |"
        in page
    )
    assert "| Unit of the loss | val_err |" in page
    assert "{steps}" not in page


@pytest.mark.parametrize("stem", ["frontier", "sparsity", "isoflop_profiles"])
def test_figures_are_labelled_with_the_unit(fitted: dict[str, Fits], stem: str) -> None:
    from matplotlib.text import Text

    for unit, label in {"bits_per_byte": "Loss (bits per byte)", "val_err": "val_err"}.items():
        texts = [text.get_text() for text in draw_page(fitted[unit], stem).findobj(Text)]
        assert label in texts
        assert not any("erplexity" in text or "nats" in text for text in texts)
        assert any("declared, not counted" in text for text in texts)


def test_a_metric_may_be_large_and_not_negative(tmp_path: Path) -> None:
    table = [{"arch": "a", "budget_flops": 1e9, "n_params": 1.0, "n_tokens": 1.0, "loss": 5e6}]
    kept = select_points(table, unit="val_ppl")
    (point,) = kept.groups["a", 1e9]
    assert point.loss == 5e6
    assert select_points(table).excluded[0].reason == "bad_loss"
    refused = select_points([table[0] | {"loss": -0.5}], unit="reward")
    assert refused.excluded[0].detail == "reward is -0.5"
    assert refused.notes[0].startswith("1 run has a reward of 0 or less, which enters no fit")


def test_the_terminal_s_tables_name_the_unit(fitted: dict[str, Fits]) -> None:
    headings = {unit: list(optima_rows(fits)[0]) for unit, fits in fitted.items()}
    assert "perplexity" in headings["nats_per_token"]
    assert headings["nats_per_token"][5] == "loss"
    assert headings["bits_per_byte"][5:] == ["loss (bits per byte)", "loss interval", "status"]
    assert headings["val_err"][5:] == ["val_err", "loss interval", "status"]


def test_gate_refuses_losses_of_another_unit(tables: dict[str, Path], tmp_path: Path) -> None:
    runs = tmp_path / "copied.parquet"
    runs.write_bytes((tables["val_err"] / "runs.parquet").read_bytes())
    ended = isoflop("gate", tables["bits_per_byte"] / "runs.parquet", runs)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "losses in val_err: must be losses in bits per byte" in ended.stderr


def test_refine_says_where_the_ladder_ends(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    plan = make_plan_of(folder, budgets=[4e17], result={"unit": "bits_per_byte"})
    write_runs(folder, plan)
    found = propose(plan, fits_of(load_rows(folder), "bits_per_byte"))
    assert found.is_empty
    assert {line.partition(", and ")[2].partition(":")[0] for line in found.dead_ends} == {
        "[trainer.ladder] has no larger one"
    }


def counted_plan(folder: Path, monkeypatch: pytest.MonkeyPatch, *, backward: int) -> Plan:
    """Plan of counted models: a head of a quarter, products of no family; training FLOPs told."""

    def count_many(requests: Any, **_: Any) -> list[Count]:
        return [one(SIZES[request.values["depth"] - 1]) for request in requests]

    def one(size: int) -> Count:
        parts = {"head": size // 2, "other": size, "attn_scores": size // 2}
        components = tuple(
            Component(
                name=name,
                flops_per_token=flops,
                num_params=size if name == "other" else 0,
                num_active_params=size if name == "other" else 0,
                counted_training_flops_per_token=(1 + backward) * flops,
            )
            for name, flops in parts.items()
        )
        return Count(
            flops=2 * size,
            training_flops=(1 + backward) * 2 * size,
            n_params=size,
            n_active=size,
            n_nonembed=size - 1000,
            components=components,
        )

    monkeypatch.setattr(own, "count_many", count_many)
    return make_plan_of(folder, count="model:build", result={"unit": "bits_per_byte"})


def recounted(folder: Path, plan: Plan) -> dict[str, set[str]]:
    """Convention findings by variant: their quantities, with `not known` for what is not."""
    write_runs(folder, plan)
    rows = load_rows(folder)
    found: dict[str, set[str]] = {}
    for finding in convention_findings(rows, fits_of(rows, "bits_per_byte"), ()):
        assert isinstance(finding, Finding)
        assert finding.variant is not None
        found.setdefault(finding.variant, set()).add(finding.quantity)
        if finding.quantity == "recount":
            assert finding.status == "not_measured"
            assert finding.value is None
    return found


def test_counted_models_are_priced_by_every_convention_that_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = counted_plan(tmp_path / "study", monkeypatch, backward=2)
    found = recounted(tmp_path / "study", plan)
    assert len(plan.runs) == 2 * len(BUDGETS) * len(SIZES)
    known = {name.split()[0] for name, quantities in found.items() if "multiplier" in quantities}
    assert known >= {"paper", "paper+head", "6n", "6n_total"}
    assert "paper+head (the table's own)" in found
    # Layers, heads and whether all pairs of tokens were scored are not in the table.
    assert found["chinchilla"] == found["causal"] == {"recount"}


def test_a_backward_pass_of_another_cost_leaves_parts_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recounted(tmp_path / "study", counted_plan(tmp_path / "study", monkeypatch, backward=1))
    assert found["paper"] == found["paper+head"] == found["causal"] == {"recount"}
    assert "multiplier" in found["6n_total"]


def test_of_declared_flops_no_part_is_known(tables: dict[str, Path]) -> None:
    rows = load_rows(tables["val_err"])
    found = convention_findings(rows, fits_of(rows, "val_err"), ())
    assert {f.variant for f in found if f.quantity == "recount"} == {"parts of the model"}
    assert not any((f.variant or "").startswith(("paper", "causal", "chinchilla")) for f in found)
