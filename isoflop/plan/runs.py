"""One planned run: its identity and everything that follows from it, computed in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from isoflop.accounting import Ledger, get_convention, model_ledger, stored_ledger
from isoflop.errors import UserError, shown
from isoflop.families import COMPONENTS, config_from_mapping, get_spec
from isoflop.recipe import Shape
from isoflop.spec import RunSpec, TrainerSpec, run_id, shown_id
from isoflop.tables import OWN_TRAINER
from isoflop.validate import CLOSED, Count, Digest, Ge, Lt, validated

COUNTED = ("attn_proj", "attn_scores", "experts", "router", "head")
# What a module of the user's own computes beside these.
OTHER = "other"

# The data are read several times: worth a word, since a repeated token teaches less.
WARN_EPOCHS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One planned run: all but spec and its place in the plan follows from these."""

    __pydantic_config__: ClassVar = CLOSED

    run_id: Digest
    """Sha256 of the canonical JSON of spec."""
    arch: str
    """Label that is compared."""
    size: Count
    """Rung of the recipe's ladder."""
    budget_flops: Count
    """Training FLOPs that the run may spend."""
    flops: Count
    """Training FLOPs of the whole run under the study's convention."""
    residual: Annotated[float, Ge(0), Lt(1)]
    """Share of the budget left unspent, from 0 (all spent) to 1."""
    match_residual: float | None
    """Signed relative difference to the reference of what the study matches; null on the ladder."""
    n_params: Count
    n_active: Count
    n_nonembed: Annotated[int, Ge(0)]
    n_tokens: Count
    epochs: float | None
    """Passes over the training data; null where the size of the corpus is not known."""
    flops_per_token: dict[str, int]
    """Forward FLOPs per token by component; exact integers. Empty where they are declared."""
    warnings: tuple[str, ...]
    spec: RunSpec | TrainerSpec
    declared: bool | None = None
    """Whether FLOPs and parameters of a trainer of one's own are declared; it has counted ones
    else. Absent from runs of built-in families."""
    ledger: Ledger | None = field(repr=False, compare=False)
    """Of the model; it follows from `spec` and is not written. None: of a trainer of one's own."""

    @property
    def family_spec(self) -> RunSpec:
        """The spec of a run that isoflop itself trains.

        Raises:
            UserError: the run is that of a trainer of one's own, of whose model nothing is known.
        """
        if isinstance(self.spec, RunSpec):
            return self.spec
        raise UserError(
            "run",
            shown(f"{shown_id(self.run_id)} of {self.arch}"),
            "one that isoflop itself trains: this one has a command of its own",
            "name another",
        )

    def row(self) -> dict[str, Any]:
        """Return the columns of plan.parquet."""
        spec = self.spec
        return {
            "run_id": self.run_id,
            "arch": self.arch,
            "family": spec.family if isinstance(spec, RunSpec) else OWN_TRAINER,
            "size": self.size,
            "budget_flops": float(self.budget_flops),
            "flops": float(self.flops),
            "residual": self.residual,
            "match_residual": self.match_residual,
            "n_params": self.n_params,
            "n_active": self.n_active,
            "n_nonembed": self.n_nonembed,
            "n_tokens": self.n_tokens,
            "steps": spec.steps,
            "batch_size": spec.batch_size,
            "seq_len": spec.seq_len,
            "seed": spec.seed,
            **{name: getattr(spec, name, None) for name in ("d_model", "n_layers", "n_heads")},
            "epochs": self.epochs,
            **{f"flops_{name}": self._flops_of(name) for name in (*COUNTED, OTHER)},
            "declared": self.declared,
            "est_step_s": None,
            "est_gpu_hours": None,
            "est_peak_mem_bytes": None,
            "warnings": list(self.warnings),
        }

    def _flops_of(self, component: str) -> float | None:
        flops = self.flops_per_token.get(component)
        return None if flops is None else float(flops)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of plan.json: exact integers; `residual` is for the reviewer's eye."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(PlannedRun)}
        del values["ledger"]
        if self.declared is None:
            del values["declared"]
        return values | {
            "residual": round(self.residual, 9),
            "warnings": list(self.warnings),
            "spec": self.spec.to_json(),
        }


def run_ledger(spec: RunSpec) -> Ledger:
    """Return FLOPs and parameters of the model that a run trains.

    Raises:
        UserError: the family is unknown or its configuration impossible.
    """
    config = config_from_mapping(spec.family, spec.config)
    shape = Shape(d_model=spec.d_model, n_layers=spec.n_layers, n_heads=spec.n_heads)
    return ledger_of(spec.family, config, shape, spec.vocab_size, spec.seq_len)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stated:
    """What follows from a run's spec and the code of its family, as a plan has it."""

    n_params: Count
    n_active: Count
    n_nonembed: Annotated[int, Ge(0)]
    flops_per_token: dict[str, Annotated[int, Ge(0)]]


def stated_ledger(spec: RunSpec, entry: Mapping[str, Any]) -> Ledger:
    """Return the ledger that a plan states for a run whose family's code is not imported.

    Args:
        spec: what the run is.
        entry: the run in plan.json.

    Raises:
        UserError: a wrong type, or counts of what is around the family's layer that are wrong.
    """
    names = [field.name for field in dataclasses.fields(_Stated)]
    stated = validated(_Stated, {name: entry.get(name) for name in names})
    shape = Shape(d_model=spec.d_model, n_layers=spec.n_layers, n_heads=spec.n_heads)
    sizes = {**dataclasses.asdict(shape), "seq_len": spec.seq_len}
    around = model_ledger((), **sizes, vocab_size=spec.vocab_size)
    flops = stated.flops_per_token
    right = {name: around.flops(name) for name in COUNTED if name not in COMPONENTS}
    fits = (
        flops == {**flops, **right}
        and set(flops) == set(COUNTED)
        and stated.n_params - stated.n_nonembed == around.num_embedding_params
        and around.num_params <= stated.n_active <= stated.n_params
    )
    if not fits:
        counts = ", ".join(
            f"{name} = {value}" for name, value in dataclasses.asdict(stated).items()
        )
        allowed = "counts that agree with each other and the spec"
        raise UserError(f"run {shown_id(run_id(spec))}", shown(counts), allowed, "restore the plan")
    by_name = {f"flops_{name}": flops[name] for name in COUNTED}
    return stored_ledger(dataclasses.asdict(stated) | by_name | sizes)


def ledger_of(family: str, config: Any, shape: Shape, vocab_size: int, seq_len: int) -> Ledger:
    """Return the ledger of a model whose layers are a family's, with that family's ``config``."""
    return model_ledger(
        get_spec(family).ledger(config, shape.d_model, seq_len),
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        vocab_size=vocab_size,
        seq_len=seq_len,
    )


def steps_of_epochs(epochs: float, num_train_tokens: int, tokens_per_step: int) -> int:
    """Return whole steps in so many passes over the training data."""
    # As typed: 0.1 is a tenth, not the float next to it.
    return int(Fraction(repr(epochs)) * num_train_tokens) // tokens_per_step


def with_seed(run: PlannedRun, seed: int) -> PlannedRun:
    """Return the same run at another seed; only its identity differs."""
    spec = dataclasses.replace(run.spec, seed=seed)
    return dataclasses.replace(run, spec=spec, run_id=run_id(spec))


def describe_run(
    spec: RunSpec,
    *,
    arch: str,
    size: int,
    budget_flops: int,
    convention: str,
    num_train_tokens: int | None,
    match_residual: float | None = None,
    ledger: Ledger | None = None,
) -> PlannedRun:
    """Return everything that follows from a run's identity and its place in the plan.

    Args:
        spec: what the run is.
        arch: label under which it is compared.
        size: rung of the ladder.
        budget_flops: training FLOPs it may spend.
        convention: name of the FLOP convention.
        num_train_tokens: tokens of the training data, where known.
        match_residual: signed relative difference to the reference of a matched study
            (:meth:`isoflop.plan.models.Models.match_residual`).
        ledger: the run's, where the caller has it already.
    """
    ledger = run_ledger(spec) if ledger is None else ledger
    epochs = None if num_train_tokens is None else round(spec.n_tokens / num_train_tokens, 6)
    warnings = []
    if epochs is not None and epochs > WARN_EPOCHS:
        warnings.append(f"reads the corpus {epochs:.2f} times")
    flops = get_convention(convention)(ledger) * spec.n_tokens
    return PlannedRun(
        run_id=run_id(spec),
        spec=spec,
        arch=arch,
        size=size,
        budget_flops=budget_flops,
        flops=flops,
        # A run of no step, which is refused later, has no budget where epochs set it.
        residual=(budget_flops - flops) / budget_flops if budget_flops else 0.0,
        n_params=ledger.num_params,
        n_active=ledger.num_active_params,
        n_nonembed=ledger.num_nonembed_params,
        n_tokens=spec.n_tokens,
        match_residual=match_residual,
        epochs=epochs,
        flops_per_token={name: ledger.flops(name) for name in COUNTED},
        warnings=tuple(warnings),
        ledger=ledger,
    )
