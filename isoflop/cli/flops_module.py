"""`isoflop flops --module`: a module of anybody's, counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.accounting.count import Count, ModuleFlops
from isoflop.cli.tables import console, new_table, print_lines
from isoflop.errors import UserError
from isoflop.numbers import format_count

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT_SEQ_LEN = 1024
# A configuration of 7e9 parameters takes seconds; this is for code that never comes back.
_TIMEOUT_S = 600

Value = bool | int | float | str


def show_module(
    target: str,
    values: Mapping[str, Value],
    seq_len: int,
    folder: Path,
    *,
    conventions: Mapping[str, str],
    as_json: bool,
) -> None:
    """Print what a module computes and holds, counted in a subprocess.

    Args:
        target: `package:build`, or `hf:` and the path of a configuration.
        values: arguments of build, or fields of the configuration.
        seq_len: tokens of the sequence that it is counted on.
        folder: that it is imported from.
        conventions: those to print, and what each counts.
        as_json: whether to print the count as one line of JSON and nothing else.

    Raises:
        UserError: it cannot be built or counted, or a length of sequences below 1.
    """
    from isoflop.plan.count import CountRequest, count_many

    if seq_len < 1:
        raise UserError("--seq-len", seq_len, "1 or more", "correct it")
    request = CountRequest(target=target, values=values, seq_len=seq_len)
    (count,) = count_many(
        [request], folder=folder, timeout_s=_TIMEOUT_S, digest=None, field="--module"
    )
    if as_json:
        click.echo(json.dumps(count.to_json()))
        return
    given = "".join(f" {name}={value}" for name, value in values.items())
    out = console()
    print_lines(
        out, [f"{target}{given}: {count.num_tokens} tokens, in sequences of {count.seq_len}"]
    )
    out.print(component_table(count))
    out.print(module_table(count))
    print_lines(out, _lines(count))
    print_lines(out, ["training FLOPs per token, and relative to paper+head"])
    out.print(convention_table(count, conventions))


def parsed_values(overrides: Iterable[str]) -> dict[str, Value]:
    """Return values of `--set NAME=VALUE`: true, false, numbers, and text for all else.

    Raises:
        UserError: one without a name or an equals sign.
    """
    values: dict[str, Value] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UserError("--set", override, "NAME=VALUE", "such as n_layer=12")
        values[name] = _value(text)
    return values


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def component_table(count: Count) -> Table:
    """Return a row per component, and their total."""
    table = new_table(
        ("component", "<"),
        ("fwd FLOPs/token", ">"),
        ("training", ">"),
        ("share", ">"),
        ("params", ">"),
        ("active", ">"),
    )
    for c in count.components:
        table.add_row(
            c.name,
            f"{c.flops_per_token:,}",
            f"{c.training_flops_per_token:,}",
            _share(c.training_flops_per_token, count),
            format_count(c.num_params),
            format_count(c.num_active_params),
        )
    table.add_section()
    table.add_row(
        "total",
        f"{count.flops:,}",
        f"{count.training_flops:,}",
        "100.0 %",
        format_count(count.n_params),
        format_count(count.n_active),
    )
    return table


def module_table(count: Count) -> Table:
    """Return a row per module with products, equal ones of a list in one row (`h.*`), added up."""
    table = new_table(
        ("module", "<"),
        ("class", "<"),
        ("of them", ">"),
        ("fwd FLOPs/token", ">"),
        ("share", ">"),
        ("params", ">"),
    )
    for path, alike in _alike(count.modules):
        training = sum(m.training_flops for m in alike)
        table.add_row(
            path or "(the model)",
            alike[0].kind,
            f"{len(alike)}",
            f"{sum(m.flops for m in alike):,}",
            _share(training, count),
            format_count(sum(m.num_params for m in alike)),
        )
    return table


def _alike(modules: Iterable[ModuleFlops]) -> Iterator[tuple[str, list[ModuleFlops]]]:
    """Yield modules that differ only in their place in lists, with what their paths have alike."""
    groups: dict[tuple[object, ...], list[ModuleFlops]] = {}
    for m in modules:
        if m.training_flops:
            names = ("*" if name.isdecimal() else name for name in m.path.split("."))
            key = (".".join(names), m.kind, m.flops, m.training_flops, m.num_params)
            groups.setdefault(key, []).append(m)
    for (path, *_), members in groups.items():
        yield str(path) if len(members) > 1 else members[0].path, members


def convention_table(count: Count, conventions: Mapping[str, str]) -> Table:
    """Return training FLOPs per token under some conventions, and each relative to `paper+head`."""
    table = new_table(
        ("convention", "<"), ("FLOPs/token", ">"), ("relative", ">"), ("what counts", "<")
    )
    reference = count.training_flops_per_token("paper+head")
    for name, what_counts in conventions.items():
        try:
            flops = count.training_flops_per_token(name)
        except UserError as error:
            table.add_row(name, "-", "-", error.allowed)
            continue
        table.add_row(name, f"{flops:,}", f"{flops / reference:.3f}", what_counts)
    return table


def _lines(count: Count) -> Iterator[str]:
    yield (
        f"parameters: {count.n_params:,} held, {count.n_active:,} active, {count.n_nonembed:,} "
        "without tables of tokens and positions"
    )
    yield (
        f"elementwise operators went through {count.elementwise_per_token:,} entries a token, "
        "forward and backward: 0 FLOPs in every convention"
    )
    for operator in count.declared_operators:
        yield f"declared: the FLOPs of {operator} are those of a formula that its author registered"
    yield from (f"note: {note}" for note in count.notes)


def _share(training_flops: int, count: Count) -> str:
    return f"{100 * training_flops / count.training_flops:.1f} %"
