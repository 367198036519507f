"""`isoflop flops`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.accounting import (
    COMPONENT_NAMES,
    CONVENTIONS,
    arithmetic_intensity,
    bytes_gathered_per_token,
    get_convention,
)
from isoflop.cli.tables import console, new_table
from isoflop.errors import UserError
from isoflop.numbers import format_count

if TYPE_CHECKING:
    from rich.table import Table

    from isoflop.accounting import Component, Ledger
    from isoflop.model.flop_gate import FlopCheck
    from isoflop.spec import RunSpec


SOME_DIFFER = 1

_WHAT_COUNTS = {
    "paper": "products but the head's, full attention",
    "paper+head": "every product, full attention",
    "causal": "paper+head, unmasked scores only",
    "chinchilla": "paper+head, embedding, softmax",
    "6n": "6 per non-embedding parameter held",
    "6n_total": "6 per parameter held",
}


@click.command()
@click.argument("target", metavar="[FAMILY|STUDY]", required=False)
@click.option("--scale", type=int, default=1, show_default=True, help="Rung of the ladder.")
@click.option("--recipe", default="paper-v1", show_default=True, help="Recipe with the ladder.")
@click.option(
    "--seq-len", type=int, help="Tokens per sequence.  [default: the recipe's; 1024 of a module]"
)
@click.option("--vocab", type=int, help="Tokens of the vocabulary.  [default: the recipe's]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change the shape: router=dense; an argument of a module's build: n_layer=6.",
)
@click.option("--convention", help="Show this convention only.")
@click.option("--bytes-per-value", type=int, default=2, show_default=True, help="2 is bf16.")
@click.option("--check", is_flag=True, help="Count with torch too, and compare exactly.")
@click.option(
    "--module",
    metavar="PACKAGE:BUILD",
    help="Count what a function of yours builds, or hf:PATH of a configuration.",
)
@click.option(
    "--path",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    help="Folder that --module is imported from.  [default: this one]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the count of --module as JSON.")
def flops(
    target: str | None,
    scale: int,
    recipe: str,
    seq_len: int | None,
    vocab: int | None,
    overrides: tuple[str, ...],
    convention: str | None,
    bytes_per_value: int,
    check: bool,
    module: str | None,
    folder: Path,
    as_json: bool,
) -> None:
    """Show the FLOPs and parameters of a model by component, under every convention.

    FAMILY is a family's name, or a folder with spec.py and module.py. With --check, every distinct
    shape of it, or of a STUDY (a file or folder), is built small, run forward and backward, and
    counted by torch: exit code 1 if any integer differs from the ledger.

    With --module, what BUILD(**values) returns, with the values of --set, is counted on shapes,
    forward and backward, by component and by module. What cannot be vouched for is refused by name.
    """
    if module is not None:
        from isoflop.cli.flops_module import DEFAULT_SEQ_LEN, parsed_values, show_module

        if target is not None:
            raise UserError("FAMILY|STUDY", target, "absent beside --module", "leave one out")
        length = DEFAULT_SEQ_LEN if seq_len is None else seq_len
        values = parsed_values(overrides)
        if convention is not None:
            get_convention(convention)
        names = tuple(CONVENTIONS) if convention is None else (convention,)
        shown = {name: _WHAT_COUNTS[name] for name in names}
        show_module(module, values, length, folder, conventions=shown, as_json=as_json)
        return
    if target is None:
        raise UserError("FAMILY|STUDY", None, "given, or --module", "name what to count")
    family = _as_family(target)
    if family is None:
        if not check:
            raise UserError(
                "FAMILY|STUDY", target, "a family, or a study with --check", "add --check"
            )
        sys.exit(_check(_study_specs(Path(target))))
    spec = _rung(family, scale, recipe, seq_len, vocab, overrides)
    if check:
        sys.exit(_check([spec], family))
    _show(spec, scale, convention, bytes_per_value)


def _as_family(target: str) -> str | None:
    """Return the family that a target names or holds; None where it is a study."""
    from isoflop.families import add_family_folder, family_names, is_family

    path = Path(target)
    if (path / "spec.py").is_file():
        return add_family_folder(path)
    if is_family(target):
        return target
    if not path.exists():
        known = ", ".join(family_names())
        raise UserError("FAMILY|STUDY", target, f"a family ({known}) or a study", "correct it")
    return None


def _rung(
    family: str,
    scale: int,
    recipe_name: str,
    seq_len: int | None,
    vocab: int | None,
    overrides: Sequence[str],
) -> RunSpec:
    """Return a run of one rung of a ladder, as far as its model goes."""
    import dataclasses

    from isoflop.data.tokenizers.spec import TOKENIZERS
    from isoflop.families import config_from_mapping, get_spec
    from isoflop.recipe import get_recipe
    from isoflop.spec import RunSpec

    recipe = get_recipe(recipe_name)
    for name, value in (("--scale", scale), ("--seq-len", seq_len), ("--vocab", vocab)):
        if value is not None and value < 1:
            raise UserError(name, value, "1 or more", "correct it")
    if recipe.max_size is not None and scale > recipe.max_size:
        allowed = f"a rung of {recipe.name}'s ladder (1 to {recipe.max_size})"
        raise UserError("--scale", scale, allowed, "correct it")
    shape = recipe.shape(scale)
    config = dataclasses.asdict(get_spec(family).ladder(recipe, scale)) | _parsed(overrides)
    # The micro recipe's data are bytes, the paper's GPT-2's tokens.
    tokenizer = TOKENIZERS["byte" if recipe.name.startswith("micro") else "gpt2"]
    return RunSpec(
        family=family,
        config=dataclasses.asdict(config_from_mapping(family, config)),
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        vocab_size=vocab or tokenizer.vocab_size,
        seq_len=seq_len or recipe.small_batch[1],
        batch_size=1,
        steps=1,
        data_id="",
        tokenizer_hash="",
        seed=0,
        recipe=recipe.name,
        precision=recipe.precision,
    )


def _parsed(overrides: Iterable[str]) -> dict[str, int | str]:
    values: dict[str, int | str] = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise UserError("--set", override, "FIELD=VALUE", "such as router=dense")
        values[name] = int(value) if value.isdecimal() else value
    return values


def _show(spec: RunSpec, scale: int, convention: str | None, bytes_per_value: int) -> None:
    from isoflop.plan.runs import run_ledger

    if convention is not None:
        get_convention(convention)
    if bytes_per_value < 1:
        raise UserError("--bytes-per-value", bytes_per_value, "1 or more", "correct it")
    ledger = run_ledger(spec)
    out = console()
    out.print(heading(spec, scale), soft_wrap=True)
    out.print(ledger_table(ledger, bytes_per_value))
    out.print(parameter_line(ledger), soft_wrap=True)
    names = tuple(CONVENTIONS) if convention is None else (convention,)
    out.print("training FLOPs per token, and relative to paper+head")
    out.print(convention_table(ledger, names))


def _study_specs(path: Path) -> list[RunSpec]:
    """Return the runs of a study file, or of the plan in a study's folder."""
    from isoflop.plan.artefact import read_plan
    from isoflop.plan.planner import make_plan
    from isoflop.study.file import load_study

    plan = read_plan(path, with_code=True) if path.is_dir() else make_plan(load_study(path))
    return [run.family_spec for run in plan.unique_runs]


def _check(specs: Sequence[RunSpec], family: str | None = None) -> int:
    from isoflop.model.flop_gate import check_family, check_specs

    checks: list[FlopCheck] = check_specs(specs)
    if family is not None:
        checks.extend(check_family(family))
    for check in checks:
        click.echo(check_line(check))
    click.echo(
        f"{len(checks)} shapes checked for {len(specs)} models; a large shape stands here as a "
        "small one with the same words, since a ledger is a polynomial in its numbers"
    )
    return SOME_DIFFER if any(check.problem for check in checks) else 0


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
    """Return the numbers of total, active and non-embedding parameters in a line."""
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
