"""The tables of a study: one place for column names, types and nulls (results/README.md).

Schemas are plain tuples here, so that importing this module stays cheap; pyarrow is imported when
a table is read or written. FLOPs are float64, other counts int64. Missing is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import UserError
from isoflop.files import write_bytes_atomic

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 3
VERSION_KEY = b"isoflop_schema_version"


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """Name of a table and its columns: (column, type), types being pyarrow's names."""

    table: str
    columns: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(name for name, _ in self.columns)

    def row(self, **values: Any) -> dict[str, Any]:
        """Return a row with these values and null in every other column."""
        assert set(values) <= set(self.names), set(values) - set(self.names)
        return {name: values.get(name) for name in self.names}

    def arrow(self) -> pa.Schema:
        """Return the pyarrow schema, with the schema version in its metadata."""
        import pyarrow as pa

        kinds = {"list<string>": pa.list_(pa.string())}
        fields = [
            (name, kinds[kind] if kind in kinds else pa.type_for_alias(kind))
            for name, kind in self.columns
        ]
        return pa.schema(fields, metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()})


PLAN = Schema(
    table="plan",
    columns=(
        ("run_id", "string"),
        ("arch", "string"),
        ("family", "string"),
        ("size", "int64"),
        ("budget_flops", "float64"),
        ("flops", "float64"),
        ("residual", "float64"),
        ("match_residual", "float64"),
        ("n_params", "int64"),
        ("n_active", "int64"),
        ("n_nonembed", "int64"),
        ("n_tokens", "int64"),
        ("steps", "int64"),
        ("batch_size", "int64"),
        ("seq_len", "int64"),
        ("seed", "int64"),
        ("d_model", "int64"),
        ("n_layers", "int64"),
        ("n_heads", "int64"),
        ("epochs", "float64"),
        ("flops_attn_proj", "float64"),
        ("flops_attn_scores", "float64"),
        ("flops_experts", "float64"),
        ("flops_router", "float64"),
        ("flops_head", "float64"),
        ("est_step_s", "float64"),
        ("est_gpu_hours", "float64"),
        ("est_peak_mem_bytes", "float64"),
        ("warnings", "list<string>"),
    ),
)

RUNS = Schema(
    table="runs",
    columns=(
        *PLAN.columns,
        ("loss", "float64"),
        ("loss_se", "float64"),
        ("perplexity", "float64"),
        ("bits_per_byte", "float64"),
        ("wall_s", "float64"),
        ("step_s_median", "float64"),
        ("peak_mem_bytes", "int64"),
        ("tokens_per_s", "float64"),
        ("n_attempts", "int64"),
        ("status", "string"),
        ("status_reason", "string"),
        ("excluded_reason", "string"),
    ),
)

OPTIMA = Schema(
    table="optima",
    columns=(
        ("arch", "string"),
        ("budget_flops", "float64"),
        ("axis", "string"),
        ("method", "string"),
        ("x_opt", "float64"),
        ("loss_opt", "float64"),
        ("ci_lo", "float64"),
        ("ci_hi", "float64"),
        ("loss_ci_lo", "float64"),
        ("loss_ci_hi", "float64"),
        ("curvature", "float64"),
        ("status", "string"),
        ("n_points", "int64"),
        ("grid_lo", "float64"),
        ("grid_hi", "float64"),
        ("mean_flops", "float64"),
        ("off_centre", "float64"),
        ("ci_at_edge", "string"),
        ("bootstrap_kind", "string"),
        ("n_boot", "int64"),
        ("n_failed", "int64"),
    ),
)

FITS = Schema(
    table="fits",
    columns=(
        ("arch", "string"),
        ("form", "string"),
        ("axis", "string"),
        ("method", "string"),
        ("parameter", "string"),
        ("value", "float64"),
        ("ci_lo", "float64"),
        ("ci_hi", "float64"),
        ("objective", "float64"),
        ("n_points", "int64"),
        ("n_starts", "int64"),
        ("share_of_starts_at_optimum", "float64"),
        ("bootstrap_kind", "string"),
        ("n_boot", "int64"),
        ("n_failed", "int64"),
        ("rmse", "float64"),
        ("heldout_error", "float64"),
        ("confidence", "float64"),
        ("budget_lo", "float64"),
        ("budget_hi", "float64"),
        ("settings", "string"),
        ("status", "string"),
    ),
)

# One arch over a reference at one budget along one resource.
COMPARE = Schema(
    table="compare",
    columns=(
        ("arch", "string"),
        ("reference", "string"),
        ("budget_flops", "float64"),
        ("resource", "string"),
        ("multiplier", "float64"),
        ("ci_lo", "float64"),
        ("ci_hi", "float64"),
        ("local_slope", "float64"),
        ("extrapolated", "bool"),
        ("status", "string"),
        ("order_claimed", "string"),
        ("axis", "string"),
        ("method", "string"),
        ("frontier", "string"),
        ("confidence", "float64"),
        ("bootstrap_kind", "string"),
        ("n_boot", "int64"),
        ("n_failed", "int64"),
    ),
)

# The exponent of one arch minus that of a reference, from the same draws.
EXPONENTS = Schema(
    table="exponents",
    columns=(
        ("arch", "string"),
        ("reference", "string"),
        ("axis", "string"),
        ("method", "string"),
        ("difference", "float64"),
        ("ci_lo", "float64"),
        ("ci_hi", "float64"),
        ("order_claimed", "string"),
        ("confidence", "float64"),
        ("bootstrap_kind", "string"),
        ("n_boot", "int64"),
        ("n_failed", "int64"),
        ("status", "string"),
    ),
)

# Every check of validity in one long table: what was varied, what came out.
VALIDITY = Schema(
    table="validity",
    columns=(
        ("check", "string"),
        ("arch", "string"),
        ("reference", "string"),
        ("axis", "string"),
        ("method", "string"),
        ("budget_flops", "float64"),
        ("variant", "string"),
        ("quantity", "string"),
        ("value", "float64"),
        ("ci_lo", "float64"),
        ("ci_hi", "float64"),
        ("baseline", "float64"),
        ("n_points", "int64"),
        ("status", "string"),
        ("detail", "string"),
    ),
)

# The study's hypotheses, frozen with its plan, and the verdict on each.
HYPOTHESES = Schema(
    table="hypotheses",
    columns=(
        ("id", "string"),
        ("claim", "string"),
        ("decide", "string"),
        ("verdict", "string"),
        ("detail", "string"),
    ),
)

# Of a study whose families have one size each: mean losses, and their ratio to a reference's.
SEED_MEANS = Schema(
    table="seed_means",
    columns=(
        ("arch", "string"),
        ("budget_flops", "float64"),
        ("n_params", "float64"),
        ("n_tokens", "float64"),
        ("n_seeds", "int64"),
        ("loss", "float64"),
        ("loss_sd", "float64"),
        ("reference", "string"),
        ("ratio", "float64"),
        ("ci_lo", "float64"),
        ("ci_hi", "float64"),
        ("n_shared", "int64"),
        ("order_claimed", "string"),
        ("confidence", "float64"),
        ("note", "string"),
    ),
)


def _null_if_not_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], schema: Schema) -> None:
    """Write rows as parquet, atomically; a NaN or infinity becomes null.

    Each row must have exactly the schema's columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for row in rows:
        assert set(row) == set(schema.names), set(row) ^ set(schema.names)
    sink = pa.BufferOutputStream()
    pq.write_table(_arrow_table(rows, schema.arrow()), sink, compression="zstd")
    write_bytes_atomic(path, sink.getvalue().to_pybytes())


def _arrow_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as an Arrow table, by way of JSON lines.

    Building arrays from Python lists makes pyarrow import pandas where it is installed, which
    takes longer than all the rest of `isoflop plan`. JSON carries every float64 exactly.
    """
    import pyarrow as pa
    import pyarrow.json

    if not rows:
        return schema.empty_table()
    lines = (
        json.dumps({name: _null_if_not_finite(row[name]) for name in schema.names}) for row in rows
    )
    parsed = pyarrow.json.read_json(
        pa.BufferReader("\n".join(lines).encode()),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="error"
        ),
    )
    return parsed.replace_schema_metadata(schema.metadata)


def open_parquet(path: Path, what: str) -> pa.Table:
    """Return any parquet file; ``what`` names its role in the error.

    Raises:
        UserError: it cannot be read, or not to its end.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            what, str(path), f"a whole parquet file ({reason})", "make it again"
        ) from None


def read_table(path: Path, schema: Schema) -> list[dict[str, Any]]:
    """Return the rows of a parquet table written by :func:`write_table`.

    Raises:
        UserError: the file is missing, damaged, of another schema version or lacks columns.
    """
    what = f"{schema.table} table"
    if not path.is_file():
        raise UserError(what, str(path), "an existing file", "make it again")
    table = open_parquet(path, what)
    version = (table.schema.metadata or {}).get(VERSION_KEY, b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise UserError(
            what, str(path), f"schema version {SCHEMA_VERSION} (it is {version})", "make it again"
        )
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise UserError(what, str(path), f"with column {missing[0]}", "make it again")
    return table.select(list(schema.names)).to_pylist()
