"""The strict FLOP gate: what torch counts on a real model against the ledger, as exact integers.

A model is built small on the CPU with the reference implementation of every operator and with
attention as plain matrix products, and run forward and backward under a
:class:`~isoflop.model.flop_counter.StrictFlopCounter`. A ledger is a polynomial in each dimension
of a shape, so a large model is checked by its shape rule: the family and the words of its
configuration (router, activation), at small numbers. tests/accounting/test_measured.py varies each
dimension, and counts the whole ladders. A family from outside the package may break its own rule at
some size, so its planned rungs are also counted as large as they are, a layer of each
(:func:`check_rung`).

    python -m isoflop.model.flop_gate FAMILY [SPEC_JSON ...]
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from isoflop.accounting import COMPONENT_NAMES, Ledger
from isoflop.errors import UserError, failure_reason
from isoflop.families import config_from_mapping, get_spec
from isoflop.model.flop_counter import StrictFlopCounter, UncountedOperatorError
from isoflop.model.loss import next_token_loss
from isoflop.model.transformer import build_model, uninitialised_model
from isoflop.plan.runs import run_ledger
from isoflop.recipe import MICRO_V1, PAPER_V1
from isoflop.spec import RunSpec
from isoflop_kernels import use_implementation

__all__ = [
    "FlopCheck",
    "MeasuredFlops",
    "StrictFlopCounter",
    "UncountedOperatorError",
    "check_family",
    "check_rung",
    "check_spec",
    "check_specs",
    "measure_run",
    "structural_spec",
]

# Components that one part of the model computes together.
PARTS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attn_proj", "attn_scores"),
    "feedforward": ("experts", "router"),
    "head": ("head", "norms"),
}
_PART_OF_MODULE = re.compile(r"Transformer\.blocks\.\d+\.(attention|feedforward)")

# A model this small is run as it is; a larger one by its shape rule.
_SMALL_PARAMS = 2_000_000
_SMALL_FLOPS = 10**9

# A layer above this many parameters is not built: its values and gradients would take gigabytes of
# the machine that plans.
_LARGE_PARAMS = 100_000_000

# Numbers of the shape rule's model; all different, so that none can stand in for another.
_SMALL_SHAPE = {"d_model": 24, "n_layers": 1, "n_heads": 3, "vocab_size": 61, "seq_len": 7}


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredFlops:
    """The FLOPs that torch counts on one batch of a model."""

    forward: int
    """FLOPs of the forward pass, loss included."""
    training: int
    """FLOPs of forward and backward pass."""
    forward_by_part: Mapping[str, int]
    """The forward pass by attention, feedforward and head, all layers together."""
    num_tokens: int
    num_params: int
    """Parameters that the model holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopCheck:
    """The outcome of one gate."""

    spec: RunSpec
    """The operators that ran."""
    flops_per_token: int
    """Forward FLOPs per token of the ledger."""
    problem: str | None
    """The first thing that differs; None where everything is equal."""


def measure_run(
    spec: RunSpec,
    *,
    batch_size: int = 1,
    device: str = "cpu",
    implementation: str = "reference",
) -> MeasuredFlops:
    """Return the FLOPs of one batch of the model that a run trains, strictly counted.

    Args:
        spec: the run; its size is what is built, so give a small one on the CPU.
        batch_size: sequences in the batch.
        device: "cpu", or "meta" for shapes only, which costs no memory at any size but works only
            for families whose work does not depend on values.
        implementation: of the isoflop_kernels operators.

    Raises:
        UncountedOperatorError: an operator ran whose FLOPs are not counted.
        UserError: the family or its configuration is not valid.
    """
    # Elsewhere only shapes count.
    with torch.device(device):
        model = build_model(spec) if device == "cpu" else uninitialised_model(spec)
    tokens = torch.randint(2, spec.vocab_size, (batch_size, spec.seq_len), device=device)
    # The CPU's flash attention has no formula.
    with StrictFlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        with use_implementation(implementation):
            loss = next_token_loss(model(tokens), tokens)
            forward = counter.total
            by_part = _by_part(counter, model)
            loss.backward()
        training = counter.total
    return MeasuredFlops(
        forward=forward,
        training=training,
        forward_by_part=by_part,
        num_tokens=tokens.numel(),
        num_params=sum(p.numel() for p in model.parameters()),
    )


def _by_part(counter: StrictFlopCounter, model: nn.Module) -> dict[str, int]:
    totals = dict.fromkeys(PARTS, 0)
    for name, _ in model.named_modules():
        path = f"{type(model).__name__}.{name}"
        if match := _PART_OF_MODULE.fullmatch(path):
            totals[match[1]] += sum(counter.of_module(path).values())
    totals["head"] = counter.total - sum(totals.values())
    return totals


def check_spec(
    spec: RunSpec, *, batch_size: int = 1, measure: Callable[..., MeasuredFlops] = measure_run
) -> FlopCheck:
    """Run the gate on a small run: every FLOP and parameter of the ledger, to the integer.

    Raises:
        UserError: the family or its configuration is not valid.
    """
    ledger = run_ledger(spec)
    try:
        problem = _first_difference(ledger, measure(spec, batch_size=batch_size))
    except UncountedOperatorError as error:
        problem = str(error)
    except UserError:
        raise
    except Exception as error:
        # Of a family's code, which is someone else's.
        problem = f"the model does not run ({failure_reason(error)})"
    return FlopCheck(spec=spec, flops_per_token=ledger.flops(*COMPONENT_NAMES), problem=problem)


def _first_difference(ledger: Ledger, measured: MeasuredFlops) -> str | None:
    tokens = measured.num_tokens
    for part, names in PARTS.items():
        expected, found = ledger.flops(*names) * tokens, measured.forward_by_part[part]
        if expected != found:
            return _differs(f"{part} ({' + '.join(names)}) forward", found, expected, tokens)
    if measured.training != 3 * measured.forward:
        return _differs("forward and backward", measured.training, 3 * measured.forward, tokens)
    if measured.num_params != ledger.num_params:
        return (
            f"parameters: the model has {measured.num_params:,}, the ledger {ledger.num_params:,}"
        )
    return None


def _differs(what: str, found: int, expected: int, tokens: int) -> str:
    return f"{what}: torch counts {found:,} FLOPs on {tokens} tokens, the ledger has {expected:,}"


def structural_spec(spec: RunSpec) -> RunSpec:
    """Return a small run with the shape rule of ``spec``; itself, where that is small already.

    Words are kept; numbers become small ones, those of the configuration from the first rung of a
    recipe's ladder (kept where they are smaller still).
    """
    ledger = run_ledger(spec)
    flops = ledger.flops(*COMPONENT_NAMES) * spec.seq_len
    if ledger.num_params <= _SMALL_PARAMS and flops <= _SMALL_FLOPS:
        return spec
    small = {name: min(value, getattr(spec, name)) for name, value in _SMALL_SHAPE.items()}
    if small["d_model"] % (2 * small["n_heads"]):
        small["n_heads"] = 1
    return dataclasses.replace(spec, config=_small_config(spec.family, spec.config), **small)


def _small_config(family: str, config: Mapping[str, int | str]) -> dict[str, int | str]:
    words = {key: value for key, value in config.items() if isinstance(value, str)}
    rung = _first_rung(family) | words
    kept = {
        key: value if isinstance(value, str) else min(value, int(config.get(key, value)))
        for key, value in rung.items()
    }
    for values in (kept, rung):
        try:
            config_from_mapping(family, values)
        except UserError:
            continue
        return values
    # The family's words and small numbers do not go together; it runs at its own size.
    return dict(config)


def _first_rung(family: str, size: int = 1) -> dict[str, int | str]:
    ladder = get_spec(family).ladder
    try:
        return dataclasses.asdict(ladder(MICRO_V1, size))
    except (KeyError, UserError):
        # A family from elsewhere may know the paper's recipe only.
        return dataclasses.asdict(ladder(PAPER_V1, size))


def check_specs(specs: Iterable[RunSpec]) -> list[FlopCheck]:
    """Check every distinct small run behind some runs; see :func:`structural_spec`."""
    distinct: dict[str, RunSpec] = {}
    for spec in specs:
        same_but = dataclasses.replace(
            structural_spec(spec), batch_size=1, steps=1, seed=0, data_id="", tokenizer_hash=""
        )
        distinct.setdefault(json.dumps(same_but.to_json(), sort_keys=True), same_but)
    return [check_spec(spec) for spec in distinct.values()]


def check_rung(spec: RunSpec) -> FlopCheck:
    """Run the gate at a run's own width and configuration: one layer, a few tokens.

    On shapes alone where the family allows it, which costs no memory at any size. Of a large layer
    whose work depends on values only the parameters are counted.

    Raises:
        UserError: the family or its configuration is not valid.
    """
    one_layer = dataclasses.replace(
        spec,
        n_layers=1,
        vocab_size=_SMALL_SHAPE["vocab_size"],
        seq_len=_SMALL_SHAPE["seq_len"],
    )
    on_shapes = functools.partial(measure_run, device="meta")
    check = check_spec(one_layer, measure=on_shapes)
    if check.problem is None:
        return check
    # Where work depends on values, shapes do not suffice; whatever is wrong is found again.
    if run_ledger(one_layer).num_params <= _LARGE_PARAMS:
        return check_spec(one_layer)
    try:
        on_shapes(one_layer)
    except Exception:
        return check_spec(one_layer, measure=_only_params)
    return check


def _only_params(spec: RunSpec, *, batch_size: int) -> MeasuredFlops:
    """Return the parameters that a run's model holds, with the FLOPs of its ledger."""
    ledger, num_tokens = run_ledger(spec), batch_size * spec.seq_len
    by_part = {part: ledger.flops(*names) * num_tokens for part, names in PARTS.items()}
    forward = sum(by_part.values())
    with torch.device("meta"):
        held = sum(p.numel() for p in uninitialised_model(spec).parameters())
    return MeasuredFlops(
        forward=forward,
        training=3 * forward,
        forward_by_part=by_part,
        num_tokens=num_tokens,
        num_params=held,
    )


def check_family(name: str, configs: Sequence[Mapping[str, int | str]] = ()) -> list[FlopCheck]:
    """Run the gate over a family: two rungs of its ladder, and the words of some configurations.

    Raises:
        UserError: there is no such family, or its code or ladder fails.
    """
    rungs = [_first_rung(name), _first_rung(name, 2)]
    small = [*rungs]
    for config in configs:
        like_it = _small_config(name, config)
        if like_it not in small:
            small.append(like_it)
    shapes = [(24, 1, 3, 7), (32, 2, 2, 5), *((24, 1, 3, 7) for _ in small[2:])]
    return [
        check_spec(_made_spec(name, config, *shape))
        for config, shape in zip(small, shapes, strict=True)
    ]


def _made_spec(
    family: str, config: Mapping[str, int | str], d_model: int, layers: int, heads: int, length: int
) -> RunSpec:
    return RunSpec(
        family=family,
        config=config,
        d_model=d_model,
        n_layers=layers,
        n_heads=heads,
        vocab_size=61,
        seq_len=length,
        batch_size=1,
        steps=1,
        data_id="",
        tokenizer_hash="",
        seed=0,
        recipe=MICRO_V1.name,
        precision="fp32",
    )


def main(arguments: Sequence[str]) -> int:
    """Print each problem of a family, one per line; return 1 if there is any."""
    name, *planned = arguments
    try:
        specs = [RunSpec.from_json(json.loads(spec)) for spec in planned]
        checks = check_family(name, [spec.config for spec in specs])
        checks += [check_rung(spec) for spec in specs]
    except UserError as error:
        print(error)
        return 1
    except Exception as error:
        # The family's code is someone else's; a traceback here would hide what it is about.
        print(f"{type(error).__name__}: {error}")
        return 1
    problems = {check.problem for check in checks if check.problem is not None}
    for problem in sorted(problems):
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
