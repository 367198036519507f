"""The tables of a study for others: csv, parquet or a data set folder, with a card on every column.

The folder of a data set is laid out as the Hugging Face hub takes it: README.md begins with YAML
that names a configuration for each table.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, get_args

from isoflop import __version__
from isoflop.analysis.report.document import Document, Section, label_column, number_column, table
from isoflop.analysis.report.renderers import markdown_page
from isoflop.errors import UserError, shown
from isoflop.files import (
    fsync_path,
    read_json,
    read_regular,
    refuse_links,
    sha256_file,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from isoflop.ingest.store import IMPORT, ImportRecord, as_json, read_import, without_folders
from isoflop.tables import METRIC, column_of, described_tables, loss_unit, open_parquet
from isoflop.texts import printable
from isoflop.units import NATS, unit_words

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["csv", "parquet", "hub-folder"]
FORMATS: tuple[Format, ...] = get_args(Format)

CARD = "README.md"
_MANIFEST = "export.json"
_RUNS = "runs"
_HUB_FILES = "data"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
# Of the study's file, what says how runs were made; placement and environment are not for others.
_STUDY_KEYS = (
    "budgets",
    "archs",
    "seeds",
    "sizes",
    "match",
    "convention",
    "recipe",
    "source",
    "tokenizer",
    "seq_len",
    "batch_size",
    "max_epochs",
)
_TRAINER_KEYS = ("command", "batch_tokens", "seq_len", "data", "ladder")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Exported:
    """A table on its way out."""

    name: str
    source: Path
    arrow: pa.Table
    unit: str


def export(
    source: Path,
    to: Format,
    out: Path,
    *,
    license_name: str | None = None,
    replace: bool = False,
) -> tuple[Path, ...]:
    """Write the tables of a folder of results into a new folder, and return the files' paths.

    Args:
        source: the folder, with runs.parquet.
        to: the form of the tables.
        out: the folder to make; it appears whole or not at all.
        license_name: what the card of a data set says of the licence; None: nothing.
        replace: whether an earlier export in its place is replaced.

    Raises:
        UserError: there are no results, a table is damaged, or something else is in the way.
    """
    tables = _read_tables(source)
    _check_place(out, replace=replace)
    out.parent.mkdir(parents=True, exist_ok=True)
    made = out.parent / f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        made.mkdir()
        names = [_write_table(one, to, made) for one in tables]
        write_text_atomic(made / CARD, _card(source, tables, to, license_name))
        names.append(CARD)
        digests = {name: sha256_file(made / name) for name in names}
        write_json_atomic(made / _MANIFEST, {"isoflop": __version__, "to": to, "files": digests})
        _put_in_place(made, out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return tuple(out / name for name in (*names, _MANIFEST))


def _read_tables(source: Path) -> list[_Exported]:
    if not source.is_dir():
        raise UserError("NAME", str(source), "a folder of results", "name one that is there")
    if not (source / f"{_RUNS}.parquet").is_file():
        do = f"first: isoflop fit {source}"
        raise UserError("NAME", str(source), f"a folder with {_RUNS}.parquet", do)
    found = []
    for name in described_tables():
        path = source / f"{name}.parquet"
        if path.is_file():
            refuse_links(path)
            arrow = open_parquet(path, f"{name} table")
            found.append(_Exported(name=name, source=path, arrow=arrow, unit=loss_unit(path)))
    return found


def _check_place(out: Path, *, replace: bool) -> None:
    """Refuse a folder that is not an export, or holds what no export wrote."""
    if not out.exists() and not out.is_symlink():
        return
    if not replace or out.is_symlink() or not (out / _MANIFEST).is_file():
        allowed = "a folder that is not there yet, or an earlier export with --replace"
        raise UserError("--out", str(out), allowed, "name another, or move it away")
    listed = read_json(out / _MANIFEST, "export")
    own = set(listed["files"]) if _is_manifest(listed) else set()
    there = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()}
    foreign = sorted(there - own - {_MANIFEST})
    if foreign:
        allowed = f"a folder with an export's own files (not {foreign[0]})"
        raise UserError("--out", str(out), allowed, "name another, or move those away")


def _is_manifest(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("files"), dict)


def _put_in_place(made: Path, out: Path) -> None:
    """Rename the folder to its name; an earlier export is removed once it is there."""
    for folder in (made / _HUB_FILES, made):
        if folder.is_dir():
            fsync_path(folder)
    old = made.with_suffix(".old")
    if out.exists():
        out.rename(old)
    made.rename(out)
    fsync_path(out.parent)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(old)


def _file_of(name: str, to: Format) -> str:
    if to == "hub-folder":
        return f"{_HUB_FILES}/{name}.parquet"
    return f"{name}.{to}"


def _write_table(one: _Exported, to: Format, folder: Path) -> str:
    name = _file_of(one.name, to)
    data = _csv(one.arrow) if to == "csv" else read_regular(one.source)
    write_bytes_atomic(folder / name, data)
    return name


def _csv(arrow: pa.Table) -> bytes:
    """Return a table as csv: missing is empty, a list is JSON, numbers have all their digits."""
    import pyarrow as pa
    import pyarrow.csv

    for index, field in enumerate(arrow.schema):
        if pa.types.is_list(field.type):
            cells = [
                None if value is None else json.dumps(value, ensure_ascii=False)
                for value in arrow.column(index).to_pylist()
            ]
            arrow = arrow.set_column(index, field.name, pa.array(cells, pa.string()))
    sink = pa.BufferOutputStream()
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    pyarrow.csv.write_csv(arrow, sink, options)
    return sink.getvalue().to_pybytes()


def _card(source: Path, tables: Sequence[_Exported], to: Format, license_name: str | None) -> str:
    for name in ("plan.json", IMPORT):
        # A folder that was received could have any file of this computer put into the card.
        refuse_links(source / name)
    planned = _json_of(source / "plan.json")
    imported = read_import(source) if (source / IMPORT).is_file() else None
    study = planned.get("study")
    study = study if isinstance(study, dict) else {}
    name = str(study.get("name") or source.resolve().name)
    runs = next(one for one in tables if one.name == _RUNS)
    document = Document(
        title=printable(name, ""),
        subtitle=(
            "Training runs of a study at equal compute, and what was fitted to them. Losses are in "
            f"{unit_words(runs.unit)}; FLOPs are training FLOPs; a missing value is null (empty in "
            "csv), never 0."
        ),
        sections=(
            _study_section(study),
            *_import_sections(imported),
            _files_section(tables, to),
            *(_columns_section(one) for one in tables),
            _source_section(source, tables),
        ),
    )
    page = markdown_page(document) + _reading(source, to, runs.unit)
    return page if to != "hub-folder" else _front_matter(name, tables, license_name) + page


def _json_of(path: Path) -> Mapping[str, Any]:
    """Return a JSON object that says where a table came from; empty without the file."""
    if not path.is_file():
        return {}
    value = read_json(path, path.stem)
    return value if isinstance(value, dict) else {}


def _study_section(study: Mapping[str, Any]) -> Section:
    known = {key: study[key] for key in _STUDY_KEYS if study.get(key) is not None}
    trainer = study.get("trainer")
    if isinstance(trainer, dict):
        known |= {f"trainer: {key}": trainer[key] for key in _TRAINER_KEYS if trainer.get(key)}
    if not known:
        return Section(key="study", title="Study", blocks=("There is no plan beside the tables.",))
    return Section(key="study", title="Study", blocks=(_pairs("The study as planned", known),))


def _import_sections(imported: ImportRecord | None) -> list[Section]:
    if imported is None:
        return []
    known = as_json(imported)
    known["source"] = without_folders(imported.source)
    known["files"] = [
        {**asdict(file), "name": without_folders(file.name)} for file in imported.files
    ]
    return [
        Section(
            key="import",
            title="Import",
            blocks=(_pairs("Where the runs come from, and how they were read", known),),
        )
    ]


def _files_section(tables: Sequence[_Exported], to: Format) -> Section:
    columns = [
        label_column("file", "File"),
        number_column("rows", "Rows", 12),
        number_column("columns", "Columns", 12),
    ]
    rows = [
        {
            "file": _file_of(one.name, to),
            "rows": one.arrow.num_rows,
            "columns": one.arrow.num_columns,
        }
        for one in tables
    ]
    return Section(key="tables", title="Tables", blocks=(table("Files", columns, rows),))


def _columns_section(one: _Exported) -> Section:
    columns = [label_column(key, key.capitalize()) for key in ("column", "type", "unit", "meaning")]
    rows = [_described(one, field.name, str(field.type)) for field in one.arrow.schema]
    return Section(
        key=one.name, title=one.name, blocks=(table(f"Columns of {one.name}", columns, rows),)
    )


def _described(one: _Exported, name: str, kind: str) -> dict[str, str]:
    known = column_of(one.name, name)
    if known is None:
        meaning = "whether it rests on FLOPs that were declared, not counted"
        if name != "declared":
            meaning = "a further column of the table that was imported"
        return {"column": name, "type": kind, "unit": "", "meaning": meaning}
    unit = known.unit.replace("nats per token", unit_words(one.unit))
    meaning = known.meaning
    if name.startswith(METRIC):
        meaning = f"{name.removeprefix(METRIC)}, as the runs reported it"
    return {"column": name, "type": known.kind, "unit": unit, "meaning": meaning}


def _source_section(source: Path, tables: Sequence[_Exported]) -> Section:
    digests = {f"sha256 of {one.source.name}": sha256_file(one.source) for one in tables}
    plan = source / "plan.json"
    if plan.is_file():
        digests["sha256 of plan.json"] = sha256_file(plan)
    made = {"Exported by isoflop": __version__, **digests}
    return Section(key="source", title="Source", blocks=(_pairs("Where this comes from", made),))


def _pairs(caption: str, values: Mapping[str, Any]) -> Any:
    columns = [label_column("what", "What"), label_column("value", "Value")]
    rows = [{"what": what, "value": _words(value)} for what, value in values.items()]
    return table(caption, columns, rows)


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text, "")


def _reading(source: Path, to: Format, unit: str) -> str:
    """Return how to read the tables again, by isoflop and by pandas."""
    file = _file_of(_RUNS, to)
    named = f" --loss-unit {unit}" if to == "csv" and unit != NATS else ""
    read = "csv" if to == "csv" else "parquet"
    return (
        "\n## Read it\n\n"
        "```sh\n"
        f"isoflop fit {file}{named} --out fitted    # the optima and laws again\n"
        "```\n\n"
        "```python\n"
        "import pandas as pd\n\n"
        f'runs = pd.read_{read}("{file}")\n'
        "```\n"
    )


def _front_matter(name: str, tables: Sequence[_Exported], license_name: str | None) -> str:
    """Return the YAML that the hub reads: strings in JSON's notation, which is YAML's, too."""
    lines = ["---", f"pretty_name: {json.dumps(printable(name, ''))}"]
    if license_name is not None:
        lines.append(f"license: {json.dumps(license_name)}")
    num_runs = max(one.arrow.num_rows for one in tables)
    size = next((word for most, word in _SIZES if num_runs < most), "n>1M")
    lines += ["tags:", "- scaling-laws", "- isoflop", "size_categories:", f"- {size}", "configs:"]
    for one in tables:
        path = PurePosixPath(_file_of(one.name, "hub-folder"))
        lines += [f"- config_name: {one.name}", f"  data_files: {path}"]
        lines += ["  default: true"] * (one.name == _RUNS)
    return "\n".join([*lines, "---", "", ""])


def results_folder(name: str) -> Path:
    """Return the folder of results that a name or a path means.

    Raises:
        UserError: there is none.
    """
    for folder in (Path(name), Path("results") / name):
        if folder.is_dir():
            return folder
    allowed = "a folder of results, or the name of one in results/"
    raise UserError("NAME", shown(repr(name)), allowed, "check the name")
