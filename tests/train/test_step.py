"""A batch's gradients: in micro-batches, over ranks, and what they cost in FLOPs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop.accounting.ledger import COMPONENT_NAMES
from isoflop.errors import UserError
from isoflop.families import family_names
from isoflop.families._shared.module import ExpertTables, summed_in_place
from isoflop.model import build_model, loss
from isoflop.placement import Placement
from isoflop.plan.runs import run_ledger
from isoflop.spec import RunSpec
from isoflop.study import PAPER_ARCHS
from isoflop.train.batch import made_batch, rank_batch
from isoflop.train.calibrate import measure_step_flops
from isoflop.train.ranks import SingleRank
from isoflop.train.step import (
    compute_type,
    gradients_of_batch,
    set_float32_products,
    tables_cast,
)
from made_shapes import rung_spec

FAMILIES = family_names()


def made(family: str, **changes: int) -> RunSpec:
    return rung_spec(family, 2, "micro-v1", **({"batch_size": 7, "seq_len": 16} | changes))


def padded_batch(spec: RunSpec) -> NDArray[np.uint16]:
    """Rows with very different numbers of targets."""
    targets_BT = made_batch(spec)
    for row in range(1, len(targets_BT)):
        targets_BT[row, 2 * row :] = 0
    return targets_BT


def step(
    model: nn.Module, targets_BT: NDArray, **options: object
) -> tuple[float, float, list[Tensor]]:
    defaults = {"clip_norm": None, "precision": "fp32"}
    done = gradients_of_batch(model, targets_BT, **(defaults | options))  # type: ignore[arg-type]
    return done.loss, done.grad_norm, [p.grad.clone() for p in model.parameters()]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for ours, whole in zip(found, expected, strict=True):
        assert (ours - whole).abs().max() <= 1e-6 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_are_the_large_batch(family: str) -> None:
    spec = made(family)
    model, targets_BT = build_model(spec), padded_batch(spec)
    whole = step(model, targets_BT)
    # 7 = 3 + 3 + 1, and one by one.
    for micro_batch in (3, 1):
        parts = step(model, targets_BT, micro_batch=micro_batch)
        assert parts[0] == pytest.approx(whole[0], rel=1e-6)
        assert parts[1] == pytest.approx(whole[1], rel=1e-6)
        assert_close(parts[2], whole[2])


def test_a_micro_batch_of_the_whole_is_the_whole_bit_for_bit() -> None:
    spec = made("mlp")
    model, targets_BT = build_model(spec), padded_batch(spec)
    whole = step(model, targets_BT)
    for micro_batch in (7, 100):
        again = step(model, targets_BT, micro_batch=micro_batch)
        assert again[:2] == whole[:2]
        assert all(torch.equal(a, b) for a, b in zip(again[2], whole[2], strict=True))
    prepared = step(model, rank_batch(targets_BT))  # type: ignore[arg-type]
    assert prepared[:2] == whole[:2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["sgatlin", "peer"])
def test_tables_gradients_are_added_in_place_with_the_same_bits(
    family: str, precision: str
) -> None:
    spec = made(family)
    model, targets_BT = build_model(spec), padded_batch(spec)
    tables = [p for name, p in model.named_parameters() if name.endswith((".w_in", ".w_out"))]
    given: list[Tensor] = []
    for table in tables:
        table.register_hook(lambda grad: None if grad is None else given.append(grad))

    def sums_in(micro_batch: int, **options: Any) -> tuple[int, list[Tensor]]:
        given.clear()
        arguments: dict[str, Any] = {"clip_norm": None, "precision": precision, **options}
        gradients_of_batch(model, targets_BT, micro_batch=micro_batch, **arguments)
        assert all(p.grad is not None for p in tables)
        assert all(layer.sums is None for layer in model.modules() if hasattr(layer, "sums"))
        return len(given), [p.grad for p in model.parameters() if p.grad is not None]

    # Of seven sequences: two micro-batches, three, and three that autograd adds up.
    assert sums_in(4)[0] == 2 * len(tables)
    in_place, apart = sums_in(3), sums_in(3, in_place=False)
    assert (in_place[0], apart[0]) == (0, 3 * len(tables))
    assert all(torch.equal(a, b) for a, b in zip(in_place[1], apart[1], strict=True))
    # Layouts of several ranks wait for every gradient.
    assert sums_in(1, ranks=TwoRanks(0, repeats=True))[0] == 7 * len(tables)


def test_an_error_within_a_step_leaves_no_sums_behind() -> None:
    model = build_model(made("sgatlin"))
    layer, raised = model.blocks[0].feedforward, RuntimeError("on the way")
    seen: list[object] = []
    with contextlib.suppress(RuntimeError), summed_in_place(model):
        seen.append(layer.sums)
        raise raised
    assert seen != [None]
    assert layer.sums is None


def test_clipping_acts_on_the_whole_batch() -> None:
    spec = made("mlp")
    model, targets_BT = build_model(spec), padded_batch(spec)
    _, norm, _ = step(model, targets_BT)
    _, before, clipped = step(model, targets_BT, clip_norm=norm / 4, micro_batch=2)
    assert before == pytest.approx(norm, rel=1e-6)
    total = math.sqrt(sum(float(g.double().square().sum()) for g in clipped))
    assert total == pytest.approx(norm / 4, rel=1e-5)


def test_micro_batches_hold_less_logits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = loss.unembedded_loss
    monkeypatch.setattr(
        "isoflop.model.transformer.unembedded_loss",
        lambda x, e, t, **head: (seen.append(t.shape[0]), real(x, e, t, **head))[1],
    )
    spec = made("mlp")
    step(build_model(spec), padded_batch(spec), micro_batch=3)
    assert seen == [3, 3, 1]


class TwoRanks(SingleRank):
    """One of two ranks that share a batch, whose sums are put together by hand."""

    size = 2

    def __init__(self, rank: int, repeats: bool = False) -> None:
        self.rank = rank
        self.repeats = repeats
        self.given: list[list[float]] = []

    def rows(self, batch_size: int) -> slice:
        if self.repeats:
            return slice(0, batch_size)
        if batch_size % 2:
            raise UserError("batch_size", batch_size, "a multiple of 2", "change it")
        half = batch_size // 2
        return slice(self.rank * half, (self.rank + 1) * half)

    def loss_scale(self) -> float:
        return 1.0 if self.repeats else 2.0

    def sum(self, values: Sequence[float]) -> list[float]:
        self.given.append(list(values))
        return [2 * value for value in values] if self.repeats else list(values)


def test_ranks_shares_add_up_to_the_batch() -> None:
    spec = made("sgatlin", batch_size=6)
    model, targets_BT = build_model(spec), padded_batch(spec)
    whole = step(model, targets_BT)
    ranks = [TwoRanks(0), TwoRanks(1)]
    shares = [step(model, targets_BT, ranks=rank, micro_batch=2)[2] for rank in ranks]
    # As DDP does, the gradients are averaged.
    assert_close([(a + b) / 2 for a, b in zip(*shares, strict=True)], whole[2])
    total, targets = (sum(values) for values in zip(*(r.given[0] for r in ranks), strict=True))
    assert targets == np.count_nonzero(targets_BT)
    assert total == pytest.approx(whole[0], rel=1e-6)


def test_ranks_that_repeat_the_batch_count_it_once() -> None:
    spec = made("mlp")
    model, targets_BT = build_model(spec), padded_batch(spec)
    whole = step(model, targets_BT)
    repeated = step(model, targets_BT, ranks=TwoRanks(1, repeats=True))
    assert repeated[0] == pytest.approx(whole[0], rel=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(repeated[2], whole[2], strict=True))


def test_a_batch_that_does_not_split_is_refused() -> None:
    spec = made("mlp")
    with pytest.raises(UserError, match="batch_size = 7"):
        step(build_model(spec), padded_batch(spec), ranks=TwoRanks(0))


def test_only_the_last_micro_batch_shares_gradients() -> None:
    spec = made("mlp")
    inner = build_model(spec)
    events: list[str] = []

    class Wrapped(nn.Module):
        """Like DDP: shares gradients after a backward pass, unless told not to."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Tensor) -> Tensor:
            events.append("forward")
            return inner(*args)

        @contextlib.contextmanager
        def no_sync(self) -> Iterator[None]:
            events.append("alone")
            yield
            events.append("end")

    step(Wrapped(), padded_batch(spec), micro_batch=3)
    assert events == ["alone", "forward", "end", "alone", "forward", "end", "forward"]


def test_gradients_and_weights_are_float32_in_bf16() -> None:
    for family in FAMILIES:
        spec = made(family, batch_size=2)
        model, targets_BT = build_model(spec), padded_batch(spec)
        exact = step(model, targets_BT)
        half = step(model, targets_BT, precision="bf16")
        assert {g.dtype for g in half[2]} == {torch.float32}
        assert half[0] != exact[0]
        assert half[0] == pytest.approx(exact[0], abs=0.05)


class ReadsOfTables(TorchDispatchMode):
    """Notes what the layers' operator reads as tables, and what is cast to bf16 of their shape."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        layers = [m for m in model.modules() if isinstance(m, ExpertTables)]
        self.tables = {t.data_ptr(): 0 for m in layers for t in (m.w_in, m.w_out)}
        self.calls: list[tuple[str, int, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name.startswith("gathered_linear"):
            forward = "_backward" not in name
            read = args[7:9] if forward else args[4:6]
            self.calls += [(name, row.element_size(), args[0].dtype) for row in read]
        elif isinstance(result, Tensor) and result.dtype == torch.bfloat16 and args:
            source = args[0].data_ptr() if isinstance(args[0], Tensor) else 0
            if source in self.tables and func is torch.ops.aten._to_copy.default:
                self.tables[source] += 1
        return result


@pytest.mark.parametrize("family", ["sgatlin", "peer"])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_bf16_gathers_two_byte_rows_of_tables_cast_once_a_step(
    family: str, recomputed: bool, micro_batch: int | None
) -> None:
    spec = made(family, batch_size=4)
    model, targets_BT = build_model(spec), padded_batch(spec)
    model.checkpoint_activations = recomputed
    with ReadsOfTables(model) as reads:
        gradients = step(model, targets_BT, precision="bf16", micro_batch=micro_batch)[2]
    num_parts = 1 if micro_batch is None else 4
    passes = num_parts * spec.n_layers * (3 if recomputed else 2)
    assert len(reads.calls) == 2 * passes
    assert {size for _, size, _ in reads.calls} == {2}
    # The tokens too, as v2 of the Triton kernels needs them.
    assert {dtype for _, _, dtype in reads.calls} == {torch.bfloat16}
    assert len(reads.tables) == 2 * spec.n_layers
    assert set(reads.tables.values()) == {1}
    layers = [m for m in model.modules() if isinstance(m, ExpertTables)]
    assert all(layer._rows is None for layer in layers)
    # Not rounded through bf16: numbers of it have 16 zero bits at their end.
    table = gradients[[*dict(model.named_parameters())].index("blocks.0.feedforward.w_out")]
    assert (table.view(torch.int32) & 0xFFFF).any()


@pytest.fixture
def products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("placement", "precision", "tf32"),
    [
        (Placement(), "highest", False),
        (Placement(device="cuda"), "high", True),
        (Placement(device="cuda:1", head="bf16"), "high", True),
        (Placement(device="cuda", head="fp32"), "highest", False),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_float32_products_of_a_gpu_are_as_the_placement_says(
    placement: Placement, precision: str, tf32: bool, products: None
) -> None:
    set_float32_products(placement)
    assert torch.get_float32_matmul_precision() == precision
    # Read by torch's compiler; it fails where torch's two interfaces were mixed.
    assert torch.backends.cuda.matmul.allow_tf32 == tf32


def test_tables_that_change_are_cast_anew() -> None:
    spec = made("sgatlin", batch_size=2)
    model, targets_BT = build_model(spec), padded_batch(spec)
    inputs_BT = torch.from_numpy(targets_BT.astype(np.int64))
    layer = model.blocks[0].feedforward
    names = {*model.state_dict()}
    losses = []
    for held in (True, False):
        with tables_cast(model, "bf16" if held else "fp32"), torch.no_grad():
            assert {*model.state_dict()} == names
            with compute_type("bf16", torch.device("cpu")):
                before = float(model(inputs_BT, inputs_BT))
                layer.w_out.mul_(2.0)
                losses.append(float(model(inputs_BT, inputs_BT)))
            assert losses[-1] != before
            layer.w_out.mul_(0.5)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_real_step_executes_the_plans_flops(family: str, micro_batch: int | None) -> None:
    spec = made(family, batch_size=3)
    flops = measure_step_flops(spec, Placement(micro_batch=micro_batch))
    assert flops.executed == flops.planned > 0
    assert flops.recomputed == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_of_logits_recompute_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "MAX_LOGIT_BYTES", 0)
    monkeypatch.setattr(loss, "CHUNK_BYTES", {"cpu": 5 * 256 * 4})
    flops = measure_step_flops(made(family, batch_size=3), Placement())
    assert flops.executed == flops.planned


@pytest.mark.parametrize("family", PAPER_ARCHS)
def test_what_checkpointing_recomputes_is_told_apart(family: str) -> None:
    spec = made(family, batch_size=3)
    flops = measure_step_flops(spec, Placement(checkpoint_activations=True))
    assert flops.executed - flops.recomputed == flops.planned
    ledger, tokens = run_ledger(spec), spec.batch_size * spec.seq_len
    layers = ledger.flops(*(name for name in COMPONENT_NAMES if name != "head")) * tokens
    # Every product of a layer but the last, whose result nothing in the backward pass needs.
    config = spec.config
    width = {
        "mlp": lambda: config["hidden_width"],
        "swiglu": lambda: config["hidden_width"],
        # Its output is weighted by the scores, so all of it is needed.
        "moe": lambda: 0,
        "peer": lambda: config["num_channels"] * config["num_neighbours"],
        "sgatlin": lambda: config["num_channels"] * config["num_neighbours"],
    }[family]()
    last = 2 * tokens * spec.n_layers * spec.d_model * int(width)
    assert flops.recomputed == layers - last
