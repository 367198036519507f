"""Optima and laws along any count of a table: its numbers, and tables where it is no size."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

import isoflop
from analysis.made_report import draw_nothing
from analysis.made_runs import curve, parabola, spaced
from isoflop.analysis.figures.profiles import profiles
from isoflop.analysis.figures.residuals import residuals
from isoflop.analysis.fit import fit_optima, fit_rows, fit_table
from isoflop.analysis.hypotheses import judge
from isoflop.analysis.load import load_rows
from isoflop.analysis.optima import OPTIMA
from isoflop.analysis.points import select_points
from isoflop.analysis.predict import PREDICTIONS
from isoflop.analysis.result import FitOptions, Fits, write_fitted
from isoflop.analysis.supplied import fit_supplied_optima, read_optima, unusable_rows
from isoflop.analysis.validity.attention import attention
from isoflop.cli import main
from isoflop.errors import UserError
from isoflop.study import Hypothesis
from isoflop.tables import read_table

BUDGETS = (1e17, 3e17, 1e18, 3e18)
POWER = 1.25
Size = Callable[[dict[str, Any]], Any]


def power_of(one: dict[str, Any]) -> float:
    """The count, a power of the parameters: optima along both are then known of each other."""
    return float(0.01 * one["n_params"] ** POWER)


def table(size: Size = power_of, name: str = "n_unembed") -> list[dict[str, Any]]:
    rows = []
    for scale, arch in ((0.1, "mlp"), (0.15, "swiglu")):
        for budget in BUDGETS:
            best = scale * budget**0.5
            made = curve(parabola(best, 2 + 1e5 / budget**0.3), spaced(best * 1.3), arch, budget)
            rows += [one | {"flops": budget, "n_active": None} for one in made]
    return [one | {name: size(one)} for one in rows]


def fitted(rows: list[dict[str, Any]], axis: str = "n_unembed", n_boot: int = 0) -> Fits:
    options = FitOptions(n_boot=n_boot, axis=axis, method="parabola")
    return fit_optima(select_points(rows, axis=axis), options, methods=("parabola",))


def test_optima_and_laws_along_a_column_are_those_that_follow_from_the_parameters() -> None:
    options = FitOptions(n_boot=0, axis="n_unembed", method="parabola")
    fits = fit_rows(table(), options)
    for arch in ("mlp", "swiglu"):
        pairs = zip(fits.optima_of(arch), fits.optima_of(arch, "n_params"), strict=True)
        for along, params in pairs:
            assert along.axis == "n_unembed"
            assert along.status == "interior"
            assert params.x_opt is not None
            assert along.x_opt == pytest.approx(0.01 * params.x_opt**POWER, rel=1e-6)
        assert fits.law(arch, "n_unembed").exponent == pytest.approx(0.5 * POWER, abs=1e-6)
    (difference,) = (one for one in fits.exponents if one.axis == "n_unembed")
    assert difference.difference == pytest.approx(0, abs=1e-6)
    assert {one.axis for one in fits.compare} == {"n_unembed"}
    assert "n_unembed/akima" in {f.variant for f in fits.validity.findings}  # type: ignore[union-attr]


def test_another_axis_changes_no_number_of_the_others() -> None:
    options = FitOptions(n_boot=40, method="parabola")
    plain = fit_optima(select_points(table()), options, methods=("parabola",))
    along = fitted(table(), n_boot=40)
    assert [o for o in along.optima if o.axis != "n_unembed"] == list(plain.optima)
    assert [law for law in along.laws if law.axis != "n_unembed"] == list(plain.laws)
    assert all(o.ci_lo is not None for o in along.optima_of("mlp", "n_unembed"))


def test_a_point_has_no_count_that_was_not_asked_for() -> None:
    (first, *_) = select_points(table()).groups.values()
    assert {(point.on("n_unembed"), len(point.sizes)) for point in first} == {(None, 0)}


@pytest.mark.parametrize("bad", [None, 0, -3.0, float("nan"), float("inf")])
def test_runs_without_the_count_are_left_out_along_it_alone_and_counted(bad: Any) -> None:
    rows = table()
    rows[2]["n_unembed"] = bad
    fits = fitted(rows)
    (along,) = (o for o in fits.optima_of("mlp") if o.budget_flops == 1e17)
    (params,) = (o for o in fits.optima_of("mlp", "n_params") if o.budget_flops == 1e17)
    assert (along.n_points, params.n_points) == (4, 5)
    assert any(line.startswith("1 run has no n_unembed above 0") for line in attention(fits))


@pytest.mark.parametrize(
    ("size", "statuses", "sentence"),
    [
        (lambda one: 12.0, {"too_few"}, "Sizes with the same n_unembed count as one"),
        (lambda one: round(one["n_params"] / 1e9) + 1, {"too_few"}, "Sizes with the same"),
        (lambda one: 1e6 + hash(one["n_params"]) % 997, None, "neither rises nor falls"),
        (lambda one: 1e300 / one["n_params"], {"interior"}, None),
        (lambda one: one["n_params"] * 1e-300, {"interior"}, None),
    ],
)
def test_a_count_that_orders_sizes_badly_has_a_status_and_a_sentence(
    size: Size, statuses: set[str] | None, sentence: str | None
) -> None:
    fits = fitted(table(size), n_boot=20)
    found = {o.status for o in fits.optima_of("mlp", "n_unembed")}
    assert statuses is None or found == statuses
    lines = [line for line in attention(fits) if "n_unembed" in line or "Sizes with" in line]
    assert all(sentence is not None and sentence in line for line in lines)
    assert bool(lines) == (sentence is not None)


@pytest.mark.parametrize("axis", ["loss", "flops", "budget_flops", "seed", "arch", "status"])
def test_what_is_no_size_is_refused_by_name(axis: str) -> None:
    with pytest.raises(UserError, match=r"--axis.*n_nonembed or another count"):
        FitOptions(axis=axis)


@pytest.mark.parametrize("column", ["n_unembd", "n_nonembed"])
def test_a_count_that_no_run_has_is_refused(column: str) -> None:
    with pytest.raises(UserError, match=f"no run has {column} above 0"):
        fitted(table(), column)


def test_a_fit_cannot_be_read_along_what_was_not_fitted() -> None:
    with pytest.raises(UserError, match="n_nonembed.*one that was fitted .*n_unembed"):
        fitted(table()).under(axis="n_nonembed")


def test_text_for_a_count_is_one_line() -> None:
    with pytest.raises(UserError, match="n_unembed = 'many': must be a number"):
        fitted(table(lambda one: "many"))


def write(path: Path, rows: list[dict[str, Any]], column: str) -> Path:
    names = ("arch", "budget_flops", "n_params", "n_tokens", "flops", "loss", column)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *([one[name] for name in names] for one in rows)])
    return path


def test_figures_show_the_name_of_a_column_as_it_is() -> None:
    column = "n_$x_{ layers"
    fits = fitted(table(name=column), column)
    for draw in (profiles, residuals):
        figure, grid = draw(fits, figure=Figure(layout="constrained"))
        figure.canvas.draw()
        assert column in {axes.get_xlabel() for axes in grid.flat}


@pytest.mark.slow
def test_the_command_line_takes_any_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    column = "n_$x_{ layers"
    path = write(tmp_path / "runs.csv", table(name=column), column)
    arguments = ["fit", str(path), "--out", str(tmp_path / "out"), "--n-boot", "0"]
    done = CliRunner().invoke(main, [*arguments, "--axis", column])
    assert done.exit_code == 0, done.output
    assert f"{column}*" in done.output
    optima = read_table(tmp_path / "out" / "optima.parquet", OPTIMA)
    assert {o["axis"] for o in optima} == {"n_params", "n_tokens", "n_active", column}
    for axis, said in (("n_layer", "columns of"), ("loss", "--axis = 'loss'")):
        refused = CliRunner().invoke(main, [*arguments, "--axis", axis])
        assert refused.exit_code == 2
        assert refused.output.startswith(f"isoflop: {said}")
        assert refused.output.count("\n") == 1


def test_a_path_is_read_with_the_column_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    of_one = [one for one in table() if one["arch"] == "mlp"]
    path = write(tmp_path / "runs.csv", of_one, "n_unembed")
    options = FitOptions(n_boot=0, axis="n_unembed", method="parabola")
    found = fit_table(path, tmp_path / "out", options).fits.optima_of("mlp")
    assert [(o.axis, o.status) for o in found] == [("n_unembed", "interior")] * len(BUDGETS)


@pytest.mark.parametrize("name", ["n_nonembd", "warnings", "family"])
def test_a_table_of_isoflop_has_counts_by_their_columns_alone(name: str) -> None:
    place = Path(__file__).parents[2] / "results" / "quickstart" / "runs.parquet"
    assert all(one["n_nonembed"] > 0 for one in load_rows(place, more=("n_nonembed",)))
    with pytest.raises(UserError, match=f"column = '{name}': must be a column of numbers"):
        load_rows(place, more=(name,))


def test_a_rule_on_non_embedding_parameters_is_decided_without_asking_for_them() -> None:
    rows = table(name="n_nonembed")
    options = FitOptions(n_boot=100, method="parabola")
    fits = fit_optima(select_points(rows), options, methods=("parabola",))

    def verdict(rule: str, of: Fits) -> tuple[str, str]:
        (found,) = judge([Hypothesis(id="H1", claim="a claim", decide=rule)], of)
        return found.verdict, found.detail

    rule = "exponent(mlp, n_nonembed) interval contains 0.625"
    assert verdict(rule, fits)[0] == "supported"
    assert verdict(rule, fits) == verdict(rule, fitted(rows, "n_nonembed", n_boot=100))
    both = "exponent(mlp, n_nonembed) - exponent(swiglu, n_nonembed) > 0.5"
    assert verdict(both, fits)[0] == "not supported"
    without = fit_optima(select_points(table()), options, methods=("parabola",))
    assert verdict(rule, without)[0] == "undecided"


def test_a_count_is_predicted_beside_parameters_and_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.csv", table(), "n_unembed")
    arguments = ["predict", str(path), "--budget", "1e19", "--out", str(tmp_path)]
    for axis in ("n_params", "n_unembed"):
        done = CliRunner().invoke(main, [*arguments, "--axis", axis])
        assert done.exit_code == 0, done.output
        assert ("n_unembed*" in done.output) == (axis == "n_unembed")
    rows = read_table(tmp_path / "predictions.parquet", PREDICTIONS)
    found = {(one["arch"], one["quantity"]): one for one in rows}
    for arch in ("mlp", "swiglu"):
        along, params = found[arch, "n_unembed"], found[arch, "n_params"]
        assert along["value"] == pytest.approx(0.01 * params["value"] ** POWER, rel=0.01)
        assert along["pi_lo"] < along["value"] < along["pi_hi"]
    planned = Path(__file__).parents[2] / "results" / "quickstart"
    refused = CliRunner().invoke(
        main, ["predict", str(planned), "--budget", "3e11", "--plan", "--axis", "n_nonembed"]
    )
    assert refused.exit_code == 2
    assert refused.output.startswith("isoflop: --axis with --plan = 'n_nonembed'")


def test_a_data_frame_has_optima_along_its_columns() -> None:
    study = isoflop.load(pd.DataFrame(table()))
    assert "n_unembed" not in set(isoflop.optima(pd.DataFrame(table()), n_boot=0).axis)
    options = {"axis": "n_unembed", "n_boot": 20, "method": "parabola"}
    along = study.under(**options)
    shown = along.optima.query("axis == 'n_unembed' and method == 'parabola'")
    assert list(shown.x_opt) == pytest.approx(
        [o.x_opt for o in fitted(table()).optima_by_group().values()]
    )
    assert set(along.predict(1e19).quantity) >= {"n_params", "n_tokens", "n_unembed"}


def test_optima_of_any_count_can_be_supplied() -> None:
    rows = [
        {"arch": "a", "budget_flops": c, "depth_opt": 3 * c**0.25, "loss_opt": 2 + 1e3 / c**0.3}
        for c in BUDGETS
    ]
    found = {(law.axis, law.parameter): law.value for law in fit_supplied_optima(rows)}
    assert found["depth", "exponent"] == pytest.approx(0.25, abs=1e-12)
    assert unusable_rows([*rows, rows[0] | {"depth_opt": 0}]) == [5]


def test_supplied_optima_of_a_fit_keep_its_axis(tmp_path: Path) -> None:
    fits = fitted(table())
    write_fitted(tmp_path / "optima.parquet", fits.optima, OPTIMA, fits)
    rows = read_optima(tmp_path / "optima.parquet")
    assert rows is not None
    laws = {
        (law.arch, law.axis): law.value
        for law in fit_supplied_optima(rows)
        if (law.form, law.parameter) == ("power_law", "exponent")
    }
    nominal = fits.law("mlp", "n_unembed", "parabola", "nominal")
    assert laws["mlp", "n_unembed"] == pytest.approx(0.5 * POWER, abs=1e-6)
    assert nominal.exponent == pytest.approx(0.5 * POWER, abs=1e-6)
