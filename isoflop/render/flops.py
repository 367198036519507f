"""The ledger of a model and the outcomes of the FLOP gate, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from isoflop.accounting import (
    COMPONENT_NAMES,
    CONVENTIONS,
    Component,
    Ledger,
    arithmetic_intensity,
    bytes_gathered_per_token,
)
from isoflop.numbers import format_count
from isoflop.render.tables import new_table
from isoflop.spec import RunSpec

if TYPE_CHECKING:
    from isoflop.model.flop_gate import FlopCheck


def heading(spec: RunSpec, size: int) -> str:
    """Return what model the ledger is of, in one line."""
    config = " ".join(f"{key}={value}" for key, value in spec.config.items())
    return (
        f"{spec.family} size {size} of {spec.recipe}: width {spec.d_model}, "
        f"{spec.n_layers} layers, {spec.n_heads} heads, {spec.seq_len} tokens, "
        f"vocabulary {spec.vocab_size}\n{config}"
    )


def ledger_table(ledger: Ledger, bytes_per_value: int) -> Table:
    """Return a row per component and their total, in 80 columns; gathered bytes are per token."""
    table = new_table(
        ("component", "<"),
        ("fwd FLOPs/token", ">"),
        ("share", ">"),
        ("params", ">"),
        ("active", ">"),
        ("gathered B", ">"),
        ("FLOPs/byte", ">"),
    )
    total = ledger.flops(*COMPONENT_NAMES)
    for c in ledger.components:
        table.add_row(*_component_row(c, total, bytes_per_value))
    table.add_section()
    table.add_row(
        "total",
        f"{total:,}",
        "100.0 %",
        format_count(ledger.num_params),
        format_count(ledger.num_active_params),
        f"{bytes_gathered_per_token(ledger, bytes_per_value):,}",
        "",
    )
    return table


def _component_row(c: Component, total: int, bytes_per_value: int) -> tuple[str, ...]:
    intensity = arithmetic_intensity(c, bytes_per_value)
    return (
        c.name,
        f"{c.flops_per_token:,}",
        f"{100 * c.flops_per_token / total:.1f} %",
        format_count(c.num_params),
        format_count(c.num_active_params),
        f"{c.gathered_values_per_token * bytes_per_value:,}" if intensity is not None else "-",
        "-" if intensity is None else f"{intensity:.2f}",
    )


def parameter_line(ledger: Ledger) -> str:
    """Total, active and non-embedding parameters."""
    return (
        f"parameters: {ledger.num_params:,} held, {ledger.num_active_params:,} active, "
        f"{ledger.num_nonembed_params:,} without the embedding"
    )


def convention_table(ledger: Ledger, names: tuple[str, ...]) -> Table:
    """Return training FLOPs per token under some conventions, and each relative to `paper+head`."""
    table = new_table(
        ("convention", "<"),
        ("FLOPs/token", ">"),
        ("relative", ">"),
        ("what counts", "<"),
    )
    reference = CONVENTIONS["paper+head"](ledger)
    for name in names:
        flops = CONVENTIONS[name](ledger)
        table.add_row(name, f"{flops:,}", f"{flops / reference:.3f}", _WHAT_COUNTS[name])
    return table


_WHAT_COUNTS = {
    "paper": "products but the head's, full attention",
    "paper+head": "every product, full attention",
    "causal": "paper+head, unmasked scores only",
    "chinchilla": "paper+head, embedding, softmax",
    "6n": "6 per non-embedding parameter held",
    "6n_total": "6 per parameter held",
}


def check_line(check: FlopCheck) -> str:
    """Return one line for a gate's outcome."""
    spec = check.spec
    config = " ".join(f"{key}={value}" for key, value in spec.config.items())
    what = (
        f"{spec.family} {config}; width {spec.d_model}, layers {spec.n_layers}, "
        f"heads {spec.n_heads}, tokens {spec.seq_len}, vocabulary {spec.vocab_size}"
    )
    if check.problem is None:
        return f"ok      {what}: {check.flops_per_token:,} FLOPs/token"
    return f"DIFFERS {what}: {check.problem}"
