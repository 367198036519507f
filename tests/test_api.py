"""`isoflop.load`, `isoflop.fit` and `isoflop.optima`: frames, fits, figures, what is shown."""

from __future__ import annotations

import doctest
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import isoflop
from analysis.made_runs import study
from isoflop.analysis.compare.multipliers import compare_archs
from isoflop.analysis.fit import fit_optima, write_tables
from isoflop.analysis.load import load_rows
from isoflop.analysis.points import select_points
from isoflop.analysis.result import FitOptions
from isoflop.api import load as load_module
from isoflop.api.frames import parquet_of
from isoflop.api.results import Results
from isoflop.errors import UserError

RESULTS = Path(__file__).resolve().parents[1] / "results"
QUICK = RESULTS / "quickstart"
HOSTILE = "<script>alert(1)</script>"


def no_fit(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("something was fitted")


@pytest.fixture
def no_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every fit with draws."""
    monkeypatch.setattr("isoflop.api.results.fit_optima", no_fit)
    monkeypatch.setattr("isoflop.api.results.complete_fit", no_fit)


def table_at(folder: Path, rows: list[dict[str, Any]] | None = None, **columns: Any) -> Path:
    """Write a csv file of runs of two families at three budgets."""
    path = folder / "runs.csv"
    made = rows or [{**row, "flops": row["budget_flops"]} for row in study(("mlp", "swiglu"))]
    pd.DataFrame(made).drop(columns="run_id").assign(**columns).to_csv(path, index=False)
    return path


def test_import_isoflop_is_light() -> None:
    heavy = {"torch", "pandas", "scipy", "matplotlib", "pyarrow", "numpy", "pydantic", "datasets"}
    code = (
        "import sys, isoflop\n"
        "names = {name for name in dir(isoflop) if not name.startswith('_')}\n"
        "assert names == {'load', 'fit', 'optima', 'read_runs', 'count', 'Results'}, names\n"
        f"found = {heavy!r} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("no_fits")
def test_a_folder_s_own_tables_are_the_frames() -> None:
    loaded = isoflop.load(RESULTS / "cpu_reference")
    assert loaded.options.n_boot == 1000
    for name in ("optima", "fits", "compare", "exponents", "validity", "excluded"):
        frame = getattr(loaded, name)
        stored = pq.read_table(RESULTS / "cpu_reference" / f"{name}.parquet").to_pandas()
        pd.testing.assert_frame_equal(
            pd.DataFrame(frame).astype(object).where(frame.notna(), None),
            stored.astype(object).where(stored.notna(), None),
            check_dtype=False,
            obj=name,
        )
    assert len(loaded.runs) == 180
    assert len(loaded.best) == 20
    loaded.plot.frontier()
    assert "2 of 15 multipliers claimed" in repr(loaded)


def changed(folder: Path, what: str) -> None:
    """Change one thing of a stored study's runs or tables."""
    runs = pq.read_table(folder / "runs.parquet")
    values = {name: runs[name].to_pylist() for name in ("loss", "wall_s", "status")}
    if what == "a loss":
        values["loss"][7] *= 1.0001
    if what == "a time":
        # Along the measured times no study of this size has a multiplier; along these it has.
        values["wall_s"] = [flops * 1e-9 for flops in runs["flops"].to_pylist()]
    if what == "a status":
        values["status"][7] = "diverged"
    for name, cells in values.items():
        column = pa.array(cells, type=runs.schema.field(name).type)
        runs = runs.set_column(runs.schema.get_field_index(name), runs.schema.field(name), column)
    pq.write_table(runs, folder / "runs.parquet")
    if what == "a table of another version":
        table = pq.read_table(folder / "compare.parquet")
        old = {**table.schema.metadata, b"isoflop_schema_version": b"3"}
        pq.write_table(table.replace_schema_metadata(old), folder / "compare.parquet")
    if what == "another unit":
        for path in folder.glob("*.parquet"):
            table = pq.read_table(path)
            named = {**(table.schema.metadata or {}), b"isoflop_loss_unit": b"bits_per_byte"}
            if path.stem != "compare":
                pq.write_table(table.replace_schema_metadata(named), path)
    if what == "no table":
        (folder / "validity.parquet").unlink()
    if what in DAMAGE:
        name, column, value = DAMAGE[what]
        table = pq.read_table(folder / f"{name}.parquet")
        cells = [value, *table[column].to_pylist()[1:]]
        place = table.schema.get_field_index(column)
        field = table.schema.field(column)
        table = table.set_column(place, field, pa.array(cells, type=field.type))
        pq.write_table(table, folder / f"{name}.parquet")


DAMAGE = {
    "a method that is none": ("compare", "method", "<b>"),
    "a reference that is none": ("compare", "reference", "nobody"),
    "a status that is none": ("compare", "status", "sure"),
    "another optimum": ("optima", "loss_opt", 1.0),
    "an interval that has no end": ("optima", "ci_hi", -1.0),
    "another law": ("fits", "value", 2.0),
    "an axis of other tables": ("compare", "axis", "n_mine"),
}


@pytest.mark.usefixtures("no_fits")
@pytest.mark.parametrize(
    "what",
    [
        *("a loss", "another unit", "another optimum"),
        *(
            pytest.param(what, marks=pytest.mark.slow)
            for what in ("a time", "a status", "a table of another version", "no table", *DAMAGE)
            if what != "another optimum"
        ),
    ],
)
def test_tables_of_other_runs_are_not_believed(what: str, tmp_path: Path) -> None:
    for path in QUICK.glob("*.parquet"):
        shutil.copy(path, tmp_path)
    changed(tmp_path, what)
    loaded = isoflop.load(tmp_path)
    assert "not fitted yet" in repr(loaded).lower()
    with pytest.raises(AssertionError, match="something was fitted"):
        _ = loaded.compare


def test_the_examples_of_docstrings_are_so() -> None:
    for module in (load_module,):
        found = doctest.testmod(module, extraglobs={"isoflop": isoflop})
        assert found.attempted >= 8
        assert found.failed == 0


class OnlyInterchange:
    """A frame that is known by the data frame interchange protocol alone."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __dataframe__(self, **options: Any) -> Any:
        return self._table.__dataframe__(**options)


def as_people_write(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the same runs as frames of other kinds, with numbers written in other ways."""
    texts = frame.assign(
        n_params=[f"{n / 1e6!r}M" for n in frame.n_params],
        n_tokens=[f"{n:,}" for n in frame.n_tokens],
        arch=frame.arch.astype("category"),
        excluded_reason=pd.Series([np.False_] * len(frame), dtype=object),
        status=["Finished", "COMPLETED", ""] * (len(frame) // 3),
        name=["17M"] * len(frame),
    )
    nullable = frame.convert_dtypes().assign(seed=pd.array([0] * len(frame), dtype="Int64"))
    arrow = pa.Table.from_pandas(frame)
    return {
        "texts": texts,
        "nullable": nullable,
        "records": frame.to_dict("records"),
        "indexed": frame.set_index(["arch", "budget_flops"]),
        "arrow": arrow,
        "interchange": OnlyInterchange(arrow),
    }


def test_frames_of_any_kind_give_the_optima_of_the_table(tmp_path: Path) -> None:
    frame = pd.read_csv(table_at(tmp_path)).drop(columns=["status_reason", "excluded_reason"])
    expected = isoflop.optima(tmp_path / "runs.csv", n_boot=0)
    for name, table in as_people_write(frame).items():
        found = isoflop.optima(table, n_boot=0)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-9, obj=name)


def test_a_frame_that_is_read_is_not_changed_and_may_change() -> None:
    runs = isoflop.load(QUICK).runs
    before = runs.copy()
    loaded = isoflop.load(runs)
    runs["loss"] = 1.0
    assert loaded.runs.loss.tolist() == before.loss.tolist()
    assert loaded.under(n_boot=0, axis="n_nonembed").best.axis.unique().tolist() == ["n_nonembed"]
    renamed = before.rename(columns={"n_active": "n_mine"})
    loaded = isoflop.load(renamed)
    assert loaded.under(n_boot=0, axis="n_mine").best.x_opt.notna().any()
    with pytest.raises(UserError, match="n_yours"):
        loaded.under(axis="n_yours")


def test_the_unit_goes_with_frames(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    runs = isoflop.load(table, loss_unit="bpb").runs
    again = isoflop.load(runs.query("arch == 'mlp'"))
    assert again.unit == "bits_per_byte"
    assert "bits per byte" in repr(again)
    with pytest.raises(UserError, match="bits_per_byte, which the frame states"):
        isoflop.load(runs, loss_unit="nats")


THEIRS = pd.DataFrame(
    {
        "Name": ["wide-1e18-N125M", "wide-1e18-N250M", "deep-1e18-N125M"],
        "State": ["finished", "crashed", "finished"],
        "tokens": ["1.3B", "0.7B", "1.3B"],
        "val_bpb": [1.1, None, 1.2],
        "GFLOPs": [1e9, 1e9, 1e9],
    }
)


def test_columns_of_others_are_mapped_and_shown() -> None:
    loaded = isoflop.load(
        THEIRS,
        map={"loss": "val_bpb", "flops": "GFLOPs"},
        parse={"Name": "{arch}-{budget_flops}-N{n_params}"},
        flops_unit="gflop",
        where="tokens != none",
    )
    runs = loaded.runs
    assert runs.arch.tolist() == ["wide", "wide", "deep"]
    assert runs.n_params.tolist() == [125_000_000, 250_000_000, 125_000_000]
    assert runs.flops.tolist() == [1e18] * 3
    assert loaded.unit == "bits_per_byte"
    assert "loss = val_bpb" in repr(loaded)
    assert "2 done of 3, 1 failed" in repr(loaded)
    same = isoflop.read_runs(THEIRS, parse={"Name": "{arch}-{budget_flops}-N{n_params}"})
    assert same.attrs["loss_unit"] == "bits_per_byte"
    assert isoflop.load(same).archs == ["deep", "wide"]
    with pytest.raises(UserError, match=r"isoflop\.load\(TABLE, map={}\)"):
        isoflop.load(THEIRS)


def test_what_names_of_columns_leave_open_is_shown() -> None:
    rows = [{"train/loss": 3.0, "eval/c4/bpb": 0.9, "params": 1e8, "tokens": 1e9, "C": 1.8e18}]
    shown = repr(isoflop.load(rows, map={}))
    assert "train/loss is taken, of training; what may be held out: eval/c4/bpb" in shown
    assert "flops are 3 times 6 · n_params · n_tokens (median)" in shown
    assert "Of its columns" not in repr(
        isoflop.load(rows, map={"loss": "eval/c4/bpb", "flops": "C / 3"})
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map": "loss=val_bpb"}, "map = 'str': must be a dictionary"),
        ({"map": {"loss": 3}}, "columns.loss = 3: must be text"),
        ({"map": {"loss": "nope"}}, "must be a column of the table"),
        ({"arch_name": "x", "take": "first"}, "take = 'first': must be 'last', 'best' or 'every'"),
        ({}, "columns of the frame = 'Name, State, .*nearest: "),
    ],
)
def test_wrong_options_of_reading_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        isoflop.load(THEIRS, **options)
    assert len(str(raised.value).splitlines()) == 1


def test_a_frame_s_runs_are_written_as_they_are_read(fitted: Results, tmp_path: Path) -> None:
    runs = isoflop.load(fitted.runs, loss_unit=None).runs.assign(seed=pd.NA)
    (tmp_path / "runs.parquet").write_bytes(parquet_of(runs))
    pd.testing.assert_frame_equal(isoflop.load(tmp_path).runs, fitted.runs)


@pytest.mark.slow
def test_a_report_s_folder_is_read_again_without_a_fit(
    fitted: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = fitted.runs.rename(columns={"loss": "val_loss", "n_params": "params"})
    made = isoflop.load(theirs, map={}).fit(n_boot=20)
    assert made.report(tmp_path) == tmp_path / "report.html"
    assert "val_loss" in (tmp_path / "import.json").read_text()
    assert "val_loss" in (tmp_path / "report.html").read_text()
    monkeypatch.setattr("isoflop.api.results.complete_fit", no_fit)
    again = isoflop.load(tmp_path)
    assert again.options.n_boot == 20
    pd.testing.assert_frame_equal(again.compare.copy(), made.compare.copy())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A fit of a table of two families, one of a hostile name, of which a run failed."""
    rows = [{**row, "flops": row["budget_flops"]} for row in study((HOSTILE, "swiglu"), num=4)]
    rows[0]["status"] = "failed"
    return isoflop.fit(table_at(tmp_path_factory.mktemp("api"), rows), n_boot=20)


def test_a_fit_s_tables_are_those_that_are_written(fitted: Results, tmp_path: Path) -> None:
    fits = fitted.fit_all()
    for path in write_tables(fits, tmp_path):
        frame = pd.DataFrame(getattr(fitted, path.stem))
        written = pq.read_table(path).to_pandas()
        pd.testing.assert_frame_equal(
            frame.astype(object).where(frame.notna(), None),
            written.astype(object).where(written.notna(), None),
            check_dtype=False,
            obj=path.stem,
        )
    assert (fitted.options.n_boot, fitted.options.reference) == (20, None)


@pytest.mark.slow
def test_another_reference_is_as_if_asked_for_from_the_start(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    options = FitOptions(n_boot=20, reference="mlp")
    selection = select_points(load_rows(table))
    expected = compare_archs(fit_optima(selection, options))
    found = isoflop.load(table).under(n_boot=20)._compare("mlp", ["flops", "wall_s"])
    along = [row for row in expected if row.resource in ("flops", "wall_s")]
    assert len(along) == 12
    for name in ("arch", "reference", "multiplier", "ci_lo", "ci_hi_simultaneous", "order_claimed"):
        column = pd.Series([getattr(row, name) for row in along], dtype=found[name].dtype)
        pd.testing.assert_series_equal(found[name], column, check_names=False)


def test_what_is_left_out_and_comparisons_wait_for_no_more_than_they_need(
    fitted: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fit for the one; optima, without surfaces and checks, for the others and for figures."""
    monkeypatch.setattr("isoflop.api.results.complete_fit", no_fit)
    loaded = isoflop.load(fitted.runs).under(n_boot=20)
    for name in ("compare", "exponents"):
        pd.testing.assert_frame_equal(
            pd.DataFrame(getattr(loaded, name)), pd.DataFrame(getattr(fitted, name)), obj=name
        )
    loaded.plot.frontier()
    with pytest.raises(AssertionError, match="something was fitted"):
        _ = loaded.validity
    monkeypatch.setattr("isoflop.api.results.fit_optima", no_fit)
    assert isoflop.load(fitted.runs).excluded.reason.tolist() == ["failed"]


def test_a_fit_of_a_loaded_folder_is_by_the_options_of_its_tables(
    fitted: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs.parquet").write_bytes(parquet_of(fitted.runs))
    write_tables(fitted.fit_all(), tmp_path)
    loaded = isoflop.load(tmp_path)
    assert loaded.options.n_boot == 20
    monkeypatch.setattr("isoflop.api.results.complete_fit", lambda _, fits: fits)
    assert loaded.fit_all().options.n_boot == loaded.options.n_boot == 20


def test_dtypes_do_not_depend_on_values(fitted: Results) -> None:
    optima, compare, excluded = fitted.optima, fitted.compare, fitted.excluded
    kinds = {"arch": "category", "n_points": "Int64", "lack_of_fit_p": "float64"}
    assert {name: str(optima[name].dtype) for name in kinds} == kinds
    assert optima.lack_of_fit_p.isna().all()
    assert str(compare.extrapolated.dtype) == "boolean"
    assert str(excluded.detail.dtype) == "string"
    assert optima.arch.dtype == compare.reference.dtype == excluded.arch.dtype
    assert str(compare.merge(optima, on=["arch", "budget_flops"]).arch.dtype) == "category"
    assert fitted.runs.attrs == optima.attrs == {"loss_unit": "nats_per_token"}


def test_frames_are_copies(fitted: Results) -> None:
    for name in ("runs", "optima", "compare"):
        frame = getattr(fitted, name)
        frame["arch"] = "changed"
        frame.attrs["loss_unit"] = "changed"
        assert "changed" not in set(getattr(fitted, name).arch)
        assert getattr(fitted, name).attrs == {"loss_unit": "nats_per_token"}
    assert fitted.runs.loss.tolist() == [row["loss"] for row in fitted._read.rows]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metod": "akima"}, "metod = 'akima': must be a known key .*; write method$"),
        ({"method": "akimo"}, "method = 'akimo': must be one of two_powers, .*; write akima$"),
        ({"n_boot": -1}, "n_boot = -1: must be .*greater than or equal to 0"),
        ({"n_boot": 1.5}, "n_boot = 1.5: must be a whole number"),
        ({"n_boot": "200"}, "n_boot = '200': must be"),
        ({"n_boot": True}, "n_boot = True: must be"),
        ({"confidence": 95}, "confidence = 95: must be"),
        ({"confidence": np.float64("nan")}, "confidence = nan: must be"),
        ({"screen": 0}, "screen = 0: must be true or false"),
        ({"fixed_e": -1.0}, "fixed_e = -1.0: must be"),
        ({"reference": "nobody"}, "reference = 'nobody': must be one of mlp, swiglu"),
        ({"seed": [1]}, r"seed = \[1\]: must be a whole number"),
        ({"method": pd.DataFrame({"a": [1, 2]})}, "method = 'DataFrame': must be"),
    ],
)
@pytest.mark.usefixtures("no_fits")
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    table = table_at(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        isoflop.fit(table, **options)
    assert len(str(raised.value).splitlines()) == 1


def test_numbers_of_numpy_are_options(tmp_path: Path) -> None:
    results = isoflop.load(table_at(tmp_path))
    given = {"n_boot": np.int64(20), "screen": np.False_, "confidence": np.float32(0.5)}
    chosen = results.under(**given).options
    assert (chosen.n_boot, chosen.screen, chosen.confidence) == (20, False, 0.5)
    assert results.options == FitOptions()


@pytest.mark.usefixtures("no_fits")
def test_unknown_resources_and_references_are_one_line() -> None:
    compare = isoflop.load(QUICK).compare
    with pytest.raises(UserError, match="resources = 'time': must be one of flops, wall_s"):
        compare(resources=["time"])
    assert compare(resources="flops").equals(compare(resources=["flops"]))
    with pytest.raises(UserError, match="'nobody': must be one of mlp"):
        compare(reference="nobody")


@pytest.mark.slow
def test_predictions_are_those_of_the_verb() -> None:
    loaded = isoflop.load(RESULTS / "cpu_reference").under(n_boot=100)
    frame = loaded.predict("1e12", archs=["mlp"])
    names = ["n_params", "n_tokens", "loss", "learning_rate", "multiplier"]
    assert frame.quantity.tolist() == names
    row = frame.set_index("quantity").loc["loss"]
    assert row.pi_lo < row.value < row.pi_hi
    assert row.budget_flops == 1e12
    with pytest.raises(UserError, match="1e17: must be from 2.5e10"):
        loaded.predict(1e17)
    assert loaded.predict(np.float64(1e12), archs="mlp").equals(frame)
    for budget in ("many", -1, None, float("nan")):
        with pytest.raises(
            UserError, match="budget = .*: must be a positive whole number of FLOPs"
        ):
            loaded.predict(budget)


@pytest.mark.usefixtures("no_fits")
def test_what_is_shown_is_escaped_and_fits_nothing(tmp_path: Path) -> None:
    rows = [{**row, "flops": row["budget_flops"]} for row in study((HOSTILE, "a&b"))]
    loaded = isoflop.load(table_at(tmp_path, rows))
    page = loaded._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a&amp;b" in page
    assert "Not fitted yet" in page
    assert "30 done of 30" in page
    assert "runs.csv" in page


def test_findings_and_attention_are_shown_of_a_fit(fitted: Results) -> None:
    text, page = repr(fitted), fitted._repr_html_()
    assert "23 done of 24, 1 failed" in text
    assert "1 run excluded: 1 failed." in text
    assert f"{HOSTILE} needs" in text or f"the compute of {HOSTILE}" in text
    assert "<script>" not in page
    assert "Needs attention:" in page
