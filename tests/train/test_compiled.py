"""A compiled model computes what the uncompiled one does, or is not used."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop import placement
from isoflop.families import family_names
from isoflop.families._shared.module import ExpertTables
from isoflop.model import build_model
from isoflop.model import loss as model_loss
from isoflop.spec import RunSpec
from isoflop.train import compiled as train_compiled
from isoflop.train import loop
from isoflop.train.batch import Batch, made_batch, rank_batch
from isoflop.train.compiled import Compiled, NotCompiled, _Expected, compile_model
from isoflop.train.loop import Hooks, Placement, train_run
from isoflop.train.ranks import SingleRank
from isoflop.train.routing import gated_modules
from isoflop.train.step import adds_in_place, gradients_of_batch
from made_data import MadeData
from made_shapes import rung_spec
from made_training import made_spec

FAMILIES = family_names()
QUERY_KEY, OUTPUT = "blocks.0.attention.query_key", "blocks.0.attention.output"

aten = torch.ops.aten


def made(family: str = "mlp", num_layers: int = 1) -> RunSpec:
    spec = rung_spec(family, 2, "micro-v1", batch_size=2, seq_len=16)
    return dataclasses.replace(spec, n_layers=num_layers)


def made_pair(family: str = "mlp", num_layers: int = 1) -> tuple[nn.Module, Batch]:
    spec = made(family, num_layers)
    return build_model(spec), rank_batch(made_batch(spec))


def step(
    model: nn.Module, batch: Batch, precision: str = "fp32", micro_batch: int | None = None
) -> tuple[float, list[Tensor]]:
    done = gradients_of_batch(
        model, batch, clip_norm=None, precision=precision, micro_batch=micro_batch
    )
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return done.loss, gradients


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, "isoflop"):
        yield lambda: [record.getMessage() for record in caplog.records]


def wrong_compiler(
    monkeypatch: pytest.MonkeyPatch,
    model: nn.Module,
    *,
    loss: Callable[[Tensor], Tensor] = lambda loss: loss,
    parameters: dict[str, Callable[[Tensor], Tensor]] | None = None,
) -> None:
    """Compile to a model that computes with these functions of its parameters, and of its loss."""

    def compiler(forward: object, **options: object) -> Callable[..., Tensor]:
        def run(*inputs: Tensor) -> Tensor:
            changed = {n: f(model.get_parameter(n)) for n, f in (parameters or {}).items()}
            compiled = vars(model).pop("forward")
            try:
                return loss(functional_call(model, changed, inputs))
            finally:
                vars(model)["forward"] = compiled

        return run

    monkeypatch.setattr(torch, "compile", compiler)


def scaled_gradient(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda p: p.detach() + factor * (p - p.detach())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_the_compiler_drops_is_noticed(
    precision: str, monkeypatch: pytest.MonkeyPatch, warnings_of: Callable[[], list[str]]
) -> None:
    model, batch = made_pair()
    before = step(model, batch, precision)
    dropped = {QUERY_KEY: Tensor.detach, OUTPUT: scaled_gradient(1.0)}
    wrong_compiler(monkeypatch, model, parameters=dropped)
    found = compile_model(model, batch, precision=precision)
    (line,) = warnings_of()
    assert found == NotCompiled(line.partition("going on without it: ")[2])
    assert line.startswith("torch.compile computes something else here")
    assert f"the gradient of {QUERY_KEY} is" in line
    assert "its norm 0 and not 0." in line
    assert OUTPUT not in line
    # It goes on as it was.
    assert "forward" not in vars(model)
    assert all(p.grad is None for p in model.parameters())
    after = step(model, batch, precision)
    assert after[0] == before[0]
    assert all(torch.equal(a, b) for a, b in zip(after[1], before[1], strict=True))


@pytest.mark.parametrize(
    ("precision", "factor"), [("fp32", 1.05), ("fp32", -1.0), ("bf16", 1.6), ("bf16", -1.0)]
)
def test_a_gradient_of_another_size_or_sign_is_noticed(
    precision: str,
    factor: float,
    monkeypatch: pytest.MonkeyPatch,
    warnings_of: Callable[[], list[str]],
) -> None:
    model, batch = made_pair()
    wrong_compiler(monkeypatch, model, parameters={OUTPUT: scaled_gradient(factor)})
    assert isinstance(compile_model(model, batch, precision=precision), NotCompiled)
    (line,) = warnings_of()
    assert OUTPUT in line
    assert QUERY_KEY not in line


@pytest.mark.parametrize(("precision", "factor"), [("fp32", 1.001), ("bf16", 1.1)])
def test_a_wrong_loss_with_right_gradients_is_noticed(
    precision: str,
    factor: float,
    monkeypatch: pytest.MonkeyPatch,
    warnings_of: Callable[[], list[str]],
) -> None:
    model, batch = made_pair()
    added = (factor - 1) * 5.5 * batch.num_targets
    wrong_compiler(monkeypatch, model, loss=lambda loss: loss + added)
    assert isinstance(compile_model(model, batch, precision=precision), NotCompiled)
    (line,) = warnings_of()
    assert "the loss is" in line
    assert "gradient" not in line


def test_numbers_that_are_not_finite_are_noticed(
    monkeypatch: pytest.MonkeyPatch, warnings_of: Callable[[], list[str]]
) -> None:
    model, batch = made_pair()
    wrong_compiler(monkeypatch, model, parameters={OUTPUT: lambda p: p * float("nan")})
    assert isinstance(compile_model(model, batch, precision="fp32"), NotCompiled)
    (line,) = warnings_of()
    assert "the loss is nan" in line
    assert line.endswith("more parameters")


def test_a_gradient_where_there_is_none_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = made_pair()
    model.unused = nn.Parameter(torch.ones(3))
    wrong_compiler(monkeypatch, model, parameters={"unused": lambda p: p})
    assert not isinstance(compile_model(model, batch, precision="fp32"), NotCompiled)
    del model.forward
    wrong_compiler(
        monkeypatch,
        model,
        loss=lambda loss: loss + 1e-3 * (model.unused - model.unused.detach()).sum(),
    )
    assert isinstance(compile_model(model, batch, precision="fp32"), NotCompiled)


def test_only_what_was_compared_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = made_pair()
    calls = []
    wrong_compiler(monkeypatch, model, loss=lambda loss: (calls.append(1), loss)[1])
    assert isinstance(compile_model(model, batch, precision="fp32"), Compiled)
    assert len(calls) == 1
    inputs, targets = batch.inputs_RT, batch.targets_RT
    model(inputs, targets)
    assert len(calls) == 2
    with torch.no_grad():
        model(inputs, targets)
    model(inputs[:1], targets[:1])
    model(inputs)
    model(inputs, targets, per_token=True)
    assert len(calls) == 2


@pytest.mark.parametrize("family", ["moe", "peer", "sgatlin"])
def test_steps_that_log_the_choice_of_experts_are_not_compiled(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = made_pair(family, num_layers=2)
    calls = []
    wrong_compiler(monkeypatch, model, loss=lambda loss: (calls.append(1), loss)[1])
    assert isinstance(compile_model(model, batch, precision="fp32"), Compiled)
    step(model, batch)
    assert len(calls) == 2
    last = gated_modules(model)[-1]
    chosen = []
    last.gates = lambda idx, score: chosen.append(idx)
    step(model, batch)
    assert (len(calls), len(chosen)) == (2, 1)
    last.gates = None
    step(model, batch)
    assert (len(calls), len(chosen)) == (3, 1)


class Halved(TorchDispatchMode):
    """Each product of matrices as the sum of two, over halves of its inner axis."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.mm.default, aten.addmm.default):
            *start, a, b = args
            half = a.shape[1] // 2
            first, last = (a[:, :half], b[:half]), (a[:, half:], b[half:])
            return func(*start, *first) + aten.mm.default(*last)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_order_of_summing_is_no_difference(family: str, precision: str) -> None:
    model, batch = made_pair(family, num_layers=2)
    expected = _Expected(model, batch, precision)
    with Halved():
        found = gradients_of_batch(model, batch, clip_norm=None, precision=precision)
    assert expected.disagreement(model, found) is None
    # In fp32 with room: a hundred times as much as it takes.
    misses = [expected._miss(name, p.grad) for name, p in model.named_parameters()]
    assert max(misses) > 0
    assert precision == "bf16" or max(misses) < 0.01


def test_a_compiler_that_fails_is_given_up_with_one_line(
    monkeypatch: pytest.MonkeyPatch, warnings_of: Callable[[], list[str]]
) -> None:
    def broken(forward: object, **options: object) -> object:
        def run(*args: object) -> None:
            raise RuntimeError("no compiler\nand a long trace")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    model, batch = made_pair()
    before = step(model, batch)
    found = compile_model(model, batch, precision="fp32")
    assert found == NotCompiled("RuntimeError: no compiler")
    assert warnings_of() == [
        "torch.compile does not work here, going on without it: RuntimeError: no compiler"
    ]
    assert all(p.grad is None for p in model.parameters())
    assert step(model, batch)[0] == before[0]


@pytest.mark.parametrize(("given", "is_default_here"), [(None, True), (None, False), (True, False)])
def test_a_run_says_whether_it_is_compiled(
    given: bool | None, is_default_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "COMPILED_DEVICES", ("cpu",) if is_default_here else ())
    seen: list[tuple[Any, ...]] = []

    def compiler(model: nn.Module, batch: Batch, *, precision: str, in_place: bool) -> NotCompiled:
        seen.append((tuple(batch.inputs_RT.shape), precision, in_place))
        # Real sequences: the same token everywhere has no gradient for queries and keys.
        assert len(batch.inputs_RT.unique()) > 4
        return NotCompiled("a trial")

    monkeypatch.setattr(loop, "compile_model", compiler)
    spec = made_spec(steps=1, batch_size=6)
    events: list[tuple[str, dict[str, Any]]] = []
    train_run(
        spec,
        MadeData(),
        placement=Placement(compile=given, micro_batch=2),
        hooks=Hooks(on_event=lambda kind, values: events.append((kind, values))),
    )
    if given or is_default_here:
        assert seen == [((2, spec.seq_len), "fp32", True)]
        assert ("not_compiled", {"reason": "a trial"}) in events
    else:
        assert not seen
        assert not [kind for kind, _ in events if "compiled" in kind]


class TwoRanks(SingleRank):
    """One of two, of which the other does without a compiler, or with it."""

    size = 2

    def __init__(self, num_others_without: int) -> None:
        self._num_others_without = float(num_others_without)

    def rows(self, batch_size: int) -> slice:
        return slice(0, batch_size // 2)

    def sum(self, values: Sequence[float]) -> list[float]:
        # The first exchange of a run is about the compiler.
        others, self._num_others_without = self._num_others_without, 0.0
        return [value + others for value in values]


@pytest.mark.parametrize("num_others_without", [0, 1])
def test_all_ranks_are_compiled_or_none(
    num_others_without: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(
        torch,
        "compile",
        lambda forward, **options: (
            lambda *inputs: (calls.append(inputs[0].shape), forward(*inputs))[1]
        ),
    )
    spec = made_spec(steps=1)
    events: dict[str, dict[str, Any]] = {}
    train_run(
        spec,
        MadeData(),
        # More sequences at a time than a rank has: its share is what runs.
        placement=Placement(compile=True, micro_batch=4),
        ranks=TwoRanks(num_others_without),
        hooks=Hooks(on_event=lambda kind, values: events.update({kind: values})),
    )
    own_share = torch.Size((2, spec.seq_len))
    if num_others_without:
        assert events["not_compiled"] == {"reason": "1 of 2 ranks do without it"}
        assert calls == [own_share]
    else:
        assert "compiled" in events
        assert calls == [own_share] * 2


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_families_compile_whole_with_the_gradients_of_the_uncompiled(
    family: str,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    warnings_of: Callable[[], list[str]],
) -> None:
    # Without generating code, which takes a minute and is compared in each run that is compiled.
    monkeypatch.setattr(train_compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    model, batch = made_pair(family)
    names = list(model.state_dict())
    before = step(model, batch, precision)
    found = compile_model(model, batch, precision=precision)
    assert isinstance(found, Compiled)
    assert found._replace(operators=()) == Compiled(1.0, 1, 0, (), ())
    assert list(model.state_dict()) == names
    after = step(model, batch, precision)
    assert after[0] == pytest.approx(before[0], rel=1e-6)
    # Gradients that autocast adds up are rounded once more, to eight bits.
    tolerance = 1e-6 if precision == "fp32" else 2**-6
    for ours, expected in zip(after[1], before[1], strict=True):
        assert float((ours - expected).norm()) <= tolerance * float(expected.norm())
    assert warnings_of() == []


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_chunks_of_logits_are_one_operator_of_the_graph(
    bf16: bool, monkeypatch: pytest.MonkeyPatch, warnings_of: Callable[[], list[str]]
) -> None:
    # As at the paper's vocabulary; a break would be a warning in each of its runs.
    monkeypatch.setattr(model_loss, "MAX_LOGIT_BYTES", 0)
    monkeypatch.setattr(model_loss, "CHUNK_BYTES", {"cpu": 5 * 256 * 4})
    monkeypatch.setattr(train_compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    model, batch = made_pair()
    model.head_in_bf16 = bf16
    before = step(model, batch)
    assert compile_model(model, batch, precision="fp32") == Compiled(
        1.0, 1, 0, (), ("isoflop::chunked_sum",)
    )
    after = step(model, batch)
    assert after[0] == before[0]
    for ours, expected in zip(after[1], before[1], strict=True):
        assert float((ours - expected).norm()) <= 1e-6 * float(expected.norm())
    assert warnings_of() == []


@pytest.mark.slow
def test_a_backend_that_writes_a_gradient_of_zeros_is_refused(
    monkeypatch: pytest.MonkeyPatch, warnings_of: Callable[[], list[str]]
) -> None:
    from torch._dynamo.backends.common import aot_autograd

    model, batch = made_pair()
    shape = model.get_parameter(QUERY_KEY).shape

    def zeroed(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        def run(*args: Tensor) -> tuple[Any, ...]:
            results = graph(*args)
            return tuple(
                torch.zeros_like(r) if isinstance(r, Tensor) and r.shape == shape else r
                for r in results
            )

        return run

    def forward(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        return graph.forward

    backend = aot_autograd(fw_compiler=forward, bw_compiler=zeroed)
    monkeypatch.setattr("torch._dynamo.lookup_backend", lambda name: backend)
    torch._dynamo.reset()
    assert isinstance(compile_model(model, batch, precision="fp32"), NotCompiled)
    (line,) = warnings_of()
    assert f"the gradient of {QUERY_KEY} is" in line
    assert "its norm 0 and not" in line


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_moe_is_one_graph_around_its_products_for_any_sizes_of_groups(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch, warnings_of: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(train_compiled, "BACKEND", "eager")
    torch._dynamo.reset()
    spec = made("moe")
    model = build_model(spec)
    model.checkpoint_activations = checkpointing
    batches = [made_batch(spec), made_batch(spec)[::-1, ::-1].copy() // 2 + 2]
    before = [step(model, rank_batch(batch)) for batch in batches]
    compiled = compile_model(model, rank_batch(batches[0]), precision="fp32")
    assert isinstance(compiled, Compiled)
    assert compiled._replace(operators=()) == Compiled(1.0, 1, 0, (), ())
    assert "isoflop::product_loop" in compiled.operators
    with torch.compiler.set_stance("fail_on_recompile"):
        after = [step(model, rank_batch(batch)) for batch in batches]
    for found, expected in zip(after, before, strict=True):
        assert found[0] == expected[0]
        for ours, whole in zip(found[1], expected[1], strict=True):
            assert (ours - whole).abs().max() <= 1e-6 * max(1.0, float(whole.abs().max()))
    assert warnings_of() == []


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [2, 1])
def test_tables_in_bf16_are_cast_outside_of_the_compiled_graph(
    micro_batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With four micro-batches their gradients are added in place, in the same graph."""
    monkeypatch.setattr(train_compiled, "BACKEND", "eager")
    torch._dynamo.reset()
    casts: list[bool] = []
    cast = ExpertTables._cast

    def noted(layer: ExpertTables, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        casts.append(torch.compiler.is_compiling())
        return cast(layer, dtype)

    monkeypatch.setattr(ExpertTables, "_cast", noted)
    spec = dataclasses.replace(made("sgatlin"), batch_size=4)
    model, eager, batch = build_model(spec), build_model(spec), rank_batch(made_batch(spec))
    inputs_RT, targets_RT = next(batch.split(micro_batch))
    part = Batch(inputs_RT=inputs_RT, targets_RT=targets_RT, num_targets=16 * micro_batch)
    in_place = adds_in_place(4 // micro_batch)
    assert in_place == (micro_batch == 1)
    compiled = compile_model(model, part, precision="bf16", in_place=in_place)
    assert isinstance(compiled, Compiled)
    assert compiled._replace(operators=()) == Compiled(1.0, 1, 0, (), ())
    with torch.compiler.set_stance("fail_on_recompile"):
        found, expected = ([], [])
        for _ in range(2):
            # Tables of other values each time, in other memory.
            for each, results in ((model, found), (eager, expected)):
                results.append(step(each, batch, "bf16", micro_batch=micro_batch))
                with torch.no_grad():
                    each.blocks[0].feedforward.w_out.mul_(2.0)
    # Before, for the comparison, two.
    assert casts == [False] * 6
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0] == theirs[0]
    assert found[0][0] != found[1][0]


@pytest.mark.slow
def test_what_is_not_compiled_is_named(
    monkeypatch: pytest.MonkeyPatch, warnings_of: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(train_compiled, "BACKEND", "eager")
    torch._dynamo.reset()
    model, batch = made_pair()
    layer = model.blocks[0].feedforward
    layer.forward = torch.compiler.disable(layer.forward)
    compiled = compile_model(model, batch, precision="fp32")
    assert isinstance(compiled, Compiled)
    held = sum(p.numel() for p in model.parameters())
    assert compiled.share == 1 - sum(p.numel() for p in layer.parameters()) / held
    assert compiled.outside == ("blocks.0.feedforward",)
    (line,) = warnings_of()
    assert line.endswith("breaks; outside: blocks.0.feedforward")
