from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from isoflop.families import get_spec
from isoflop.model import flop_gate
from isoflop.model.flop_counter import ZERO_COST
from isoflop.model.flop_gate import (
    FlopCheck,
    MeasuredFlops,
    StrictFlopCounter,
    UncountedOperatorError,
    check_family,
    check_rung,
    check_spec,
    check_specs,
    main,
    measure_run,
    structural_spec,
)
from isoflop.model.init import Initialiser, constant
from isoflop.model.transformer import uninitialised_model
from isoflop.plan.planner import make_plan
from isoflop.spec import RunSpec
from isoflop.study import Variant, paper_study
from made_shapes import rung_spec

RAW = "isoflop_tests::raw_product"


@torch.library.custom_op(RAW, mutates_args=(), schema="(Tensor x, Tensor w) -> Tensor")
def raw_product(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


@raw_product.register_fake
def _(x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[1])


raw_product.register_autograd(lambda ctx, grad: (None, None))


def refused(run: object, *arguments: object) -> tuple[str, ...]:
    with pytest.raises(UncountedOperatorError) as caught, StrictFlopCounter():
        run(*arguments)  # type: ignore[operator]
    return caught.value.operators


def test_a_custom_operator_without_a_formula_is_named() -> None:
    x, w = torch.ones(3, 4), torch.ones(4, 5)
    assert refused(raw_product, x, w) == (RAW,)


def test_embedding_bag_is_named() -> None:
    bag = nn.EmbeddingBag(6, 4, mode="sum")
    (name,) = refused(bag, torch.tensor([[0, 1]]))
    assert name.startswith("aten::_embedding_bag")


def test_the_cpus_flash_attention_is_named_and_plain_products_are_counted() -> None:
    q = torch.ones(1, 2, 8, 4, requires_grad=True)

    def attend() -> None:
        F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()

    names = refused(attend)
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    with StrictFlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        attend()
    assert counter.total == 3 * 2 * 2 * 2 * 8 * 8 * 4


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (lambda x: torch.mv(x, x[0]), "aten::mv"),
        (lambda x: torch.dot(x[0], x[1]), "aten::dot"),
        (lambda x: torch.linalg.svdvals(x), "aten::_linalg_svd"),
        (lambda x: torch.fft.fft(x), "aten::_fft_r2c"),
        (lambda x: torch.cdist(x, x), "aten::_cdist_forward"),
        (lambda x: x.to_sparse() @ x, "aten::_to_sparse"),
    ],
)
def test_other_products_without_a_formula_are_named(run: object, name: str) -> None:
    assert any(name in found for found in refused(run, torch.ones(4, 4)))


def test_every_operator_is_named_at_once_and_the_error_travels_between_processes() -> None:
    x = torch.ones(4, 4)
    names = refused(lambda: (torch.mv(x, x[0]), raw_product(x, x)))
    assert names == ("aten::mv", RAW)
    again = pickle.loads(pickle.dumps(UncountedOperatorError(names)))
    assert again.operators == names
    assert "register a FLOP formula" in str(again)


def test_a_count_cannot_be_read_past_an_uncounted_operator() -> None:
    x = torch.ones(4, 4)
    with contextlib.suppress(UncountedOperatorError), StrictFlopCounter() as counter:
        torch.mv(x, x[0])
        with pytest.raises(UncountedOperatorError):
            _ = counter.total


def test_an_error_inside_is_not_replaced() -> None:
    x = torch.ones(4, 4)

    def fail() -> None:
        with StrictFlopCounter():
            torch.mv(x, x[0])
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_counts_by_operator_backward_and_out_forms() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    w = torch.ones(3, 5, requires_grad=True)
    with StrictFlopCounter() as counter:
        y = torch.addmm(torch.ones(5), x, w)
        forward = counter.total
        y.sum().backward()
        with torch.no_grad():
            torch.mm(x, w, out=torch.empty(2, 5))
    product = 2 * 2 * 3 * 5
    assert forward == product
    assert counter.by_operator == {"aten::addmm": product, "aten::mm": 3 * product}
    # A second use starts from nothing.
    with counter:
        torch.bmm(torch.ones(1, 2, 3), torch.ones(1, 3, 5))
    assert counter.by_operator == {"aten::bmm": product}


def test_an_optimizers_step_and_clipping_count_nothing() -> None:
    w = nn.Parameter(torch.ones(3, 5))
    for options in ({}, {"fused": True}, {"foreach": True}):
        optimizer = torch.optim.AdamW([w], **options)  # type: ignore[arg-type]
        w.grad = torch.ones(3, 5)
        with StrictFlopCounter() as counter:
            nn.utils.clip_grad_norm_([w], 1.0)
            optimizer.step()
        assert counter.total == 0


def test_the_zero_list_holds_no_operator_with_a_formula() -> None:
    counted = {"mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_mm"}
    assert not {f"aten::{name}" for name in counted} & ZERO_COST
    for name in ZERO_COST:
        namespace, operator = name.split("::")
        assert "mm" not in operator.split("_")
        # A misspelt name would vouch for nothing.
        assert hasattr(getattr(torch.ops, namespace), operator), name


def small_spec(**changes: object) -> RunSpec:
    values: dict[str, object] = {
        "family": "mlp",
        "config": {"hidden_width": 10},
        "d_model": 12,
        "n_layers": 2,
        "n_heads": 2,
        "vocab_size": 17,
        "seq_len": 5,
        "batch_size": 1,
        "steps": 1,
        "data_id": "made",
        "tokenizer_hash": "made",
        "seed": 0,
        "recipe": "micro-v1",
        "precision": "fp32",
    }
    return RunSpec(**(values | changes))  # type: ignore[arg-type]


def measured_with(**changes: object) -> MeasuredFlops:
    return dataclasses.replace(measure_run(small_spec()), **changes)  # type: ignore[arg-type]


def problem_of(measured: MeasuredFlops) -> str:
    check = check_spec(small_spec(), measure=lambda *args, **kwargs: measured)
    assert check.problem is not None
    return check.problem


def test_a_difference_names_the_component() -> None:
    right = measured_with()
    assert check_spec(small_spec(), measure=lambda *a, **k: right).problem is None
    for part, names in (
        ("attention", "attn_proj + attn_scores"),
        ("feedforward", "experts + router"),
        ("head", "head"),
    ):
        off = dict(right.forward_by_part)
        off[part] += 1
        problem = problem_of(measured_with(forward_by_part=off))
        assert problem.startswith(f"{part} ({names}")
        assert f"{off[part]:,} FLOPs on 5 tokens, the ledger has {off[part] - 1:,}" in problem
    assert "backward" in problem_of(measured_with(training=right.training + 2))
    assert "parameters" in problem_of(measured_with(num_params=right.num_params + 1))


def test_an_uncounted_operator_is_a_problem_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(12, 12))

        def initialisers(self) -> dict[str, Initialiser]:
            return {"w": constant(0.0)}

        def forward(self, x_TD: Tensor) -> Tensor:
            return x_TD + raw_product(x_TD.detach(), self.w.detach())

    monkeypatch.setattr("isoflop.model.transformer.get_build", lambda name: lambda c, d: Raw())
    check = check_spec(small_spec())
    assert check.problem is not None
    assert RAW in check.problem


def test_large_runs_are_checked_by_their_rule() -> None:
    study = dataclasses.replace(
        paper_study((10**18,)),
        archs=("mlp", "sgatlin", "dense-router", "one-channel"),
        variants=(
            Variant(arch="dense-router", family="sgatlin", overrides={"router": "dense"}),
            Variant(
                arch="one-channel",
                family="sgatlin",
                overrides={"num_channels": 1, "activation": "relu"},
            ),
        ),
    )
    specs = [run.spec for run in make_plan(study).unique_runs]
    checks = check_specs(specs)
    assert all(check.problem is None for check in checks)
    kinds = [(c.spec.config.get("router"), c.spec.config.get("num_channels")) for c in checks]
    assert kinds == [
        (None, None),
        ("product_dense", 4),
        ("dense", 4),
        ("product_dense", 1),
    ]
    for check in checks:
        assert check.spec.d_model <= 24
        assert structural_spec(check.spec) == check.spec


def test_a_small_run_is_checked_as_it_is() -> None:
    assert structural_spec(small_spec()) == small_spec()
    doubled = [small_spec(), small_spec(seed=3, steps=9, data_id="other", batch_size=4)]
    (check,) = check_specs(doubled)
    assert check.spec.config == {"hidden_width": 10}


def test_a_shape_that_cannot_be_made_small_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flop_gate, "_SMALL_PARAMS", 0)
    odd = {"num_channels": 1, "num_neighbours": 5, "num_experts": 36, "router_width": 2}
    spec = small_spec(family="peer", config=odd)
    (check,) = check_specs([spec])
    assert check.problem is None


@pytest.fixture
def lying_mlp(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    spec = get_spec("mlp")
    honest = spec.ledger

    def ledger(config: object, d_model: int, seq_len: int) -> object:
        (part,) = honest(config, d_model, seq_len)
        # Right at one width only.
        return (dataclasses.replace(part, flops_per_token=part.flops_per_token * d_model // 24),)

    monkeypatch.setattr(spec, "ledger", ledger)
    return


@pytest.mark.usefixtures("lying_mlp")
def test_a_ledger_that_is_right_at_one_size_only_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = check_family("mlp")
    assert first.problem is None
    assert second.problem is not None
    assert second.problem.startswith("feedforward (experts + router) forward: torch counts")
    assert main(["mlp"]) == 1
    assert capsys.readouterr().out.strip() == second.problem


def test_the_gate_of_a_family_prints_nothing_when_all_is_equal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["moe", json.dumps(rung_spec("moe", 1, "micro-v1").to_json())]) == 0
    assert main(["nope"]) == 1
    assert "family = 'nope'" in capsys.readouterr().out


def test_the_outcome_says_what_ran() -> None:
    check = check_spec(small_spec())
    assert isinstance(check, FlopCheck)
    assert check.flops_per_token == 2 * (8 * 12 * 12 + 4 * 5 * 12 + 4 * 12 * 10) + 2 * 12 * 17


def test_a_large_layer_whose_work_depends_on_values_is_not_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 16 experts of three matrices of 4096 x 4096: 3 GB, and as much of gradients.
    spec = dataclasses.replace(rung_spec("moe", 1), d_model=4096, n_heads=32)
    spec = dataclasses.replace(spec, config={**spec.config, "hidden_width": 4096})

    def build(spec: RunSpec) -> nn.Module:
        raise MemoryError

    monkeypatch.setattr(flop_gate, "build_model", build)
    assert check_rung(spec).problem is None

    def wrong(spec: RunSpec) -> nn.Module:
        model = uninitialised_model(spec)
        model.extra = nn.Parameter(torch.empty(3))
        return model

    monkeypatch.setattr(flop_gate, "uninitialised_model", wrong)
    assert "parameters: the model has" in str(check_rung(spec).problem)
