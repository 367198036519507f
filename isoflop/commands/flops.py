"""`isoflop flops`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.errors import UserError

if TYPE_CHECKING:
    from isoflop.model.flop_gate import FlopCheck
    from isoflop.spec import RunSpec

SOME_DIFFER = 1


@click.command(short_help="Show a model's FLOP ledger, or check a study's.")
@click.argument("target", metavar="FAMILY|STUDY")
@click.option("--scale", type=int, default=1, show_default=True, help="Rung of the ladder.")
@click.option("--recipe", default="paper-v1", show_default=True, help="Recipe with the ladder.")
@click.option("--seq-len", type=int, help="Tokens per sequence.  [default: the recipe's]")
@click.option("--vocab", type=int, help="Tokens of the vocabulary.  [default: the recipe's]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change the shape: router=dense.",
)
@click.option("--convention", help="Show this convention only.")
@click.option("--bytes-per-value", type=int, default=2, show_default=True, help="2 is bf16.")
@click.option("--check", is_flag=True, help="Count with torch too, and compare exactly.")
def flops(
    target: str,
    scale: int,
    recipe: str,
    seq_len: int | None,
    vocab: int | None,
    overrides: tuple[str, ...],
    convention: str | None,
    bytes_per_value: int,
    check: bool,
) -> None:
    """Show the FLOPs and parameters of a model by component, under every convention.

    FAMILY is a family's name, or a folder with spec.py and module.py. With --check, every distinct
    shape of it, or of a STUDY (a file or folder), is built small, run forward and backward, and
    counted by torch: exit code 1 if any integer differs from the ledger.
    """
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

    from isoflop.data.catalog import get_tokenizer_spec
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
    tokenizer = get_tokenizer_spec("byte" if recipe.name.startswith("micro") else "gpt2")
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
    from isoflop.accounting import CONVENTIONS, get_convention
    from isoflop.plan.runs import run_ledger
    from isoflop.render import flops as render
    from isoflop.render.tables import console

    if convention is not None:
        get_convention(convention)
    if bytes_per_value < 1:
        raise UserError("--bytes-per-value", bytes_per_value, "1 or more", "correct it")
    ledger = run_ledger(spec)
    out = console()
    out.print(render.heading(spec, scale), markup=False, soft_wrap=True)
    out.print(render.ledger_table(ledger, bytes_per_value))
    out.print(render.parameter_line(ledger), markup=False, soft_wrap=True)
    names = tuple(CONVENTIONS) if convention is None else (convention,)
    out.print("training FLOPs per token, and relative to paper+head")
    out.print(render.convention_table(ledger, names))


def _study_specs(path: Path) -> list[RunSpec]:
    """Return the runs of a study file, or of the plan in a study's folder."""
    from isoflop.plan.artefact import read_plan
    from isoflop.plan.planner import make_plan
    from isoflop.study.file import load_study

    plan = read_plan(path) if path.is_dir() else make_plan(load_study(path))
    return [run.spec for run in plan.unique_runs]


def _check(specs: Sequence[RunSpec], family: str | None = None) -> int:
    from isoflop.model.flop_gate import check_family, check_specs
    from isoflop.render.flops import check_line

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
