"""Made inputs of gathered_linear, its definition in float64, and what its tests share.

The definition is written independently of the package.
"""

# T tokens, D width, C channels, K experts chosen per channel, Ct tables, E experts per table

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

import isoflop_kernels
from isoflop_kernels.gathered_linear.gates import ACTIVATIONS, GATE_ORDERS

GATES = list(itertools.product(ACTIVATIONS, GATE_ORDERS))
GRADIENTS = ("x", "score", "w_in", "w_out")
TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Sizes, whether the table is shared, and how experts are chosen."""

    T: int = 7
    D: int = 12
    C: int = 3
    K: int = 4
    E: int = 9
    shared: bool = False
    choice: str = "random"

    def __str__(self) -> str:
        sizes = f"T{self.T}-D{self.D}-C{self.C}-K{self.K}-E{self.E}"
        return f"{sizes}-{'shared' if self.shared else 'own'}-{self.choice}"

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(7)
        num_tables = 1 if self.shared else self.C

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        idx = torch.randint(self.E, (self.T, self.C, self.K), generator=generator)
        if self.choice == "duplicates":
            idx = idx[..., :1].expand_as(idx).clone()
        elif self.choice == "unused":
            idx = idx % 2 * (self.E - 1)
        elif self.choice == "popular":
            idx = torch.full_like(idx, self.E - 1)
        return {
            "x": normal(self.T, self.D),
            "idx": idx.to(torch.int32),
            "score": normal(self.T, self.C, self.K),
            "w_in": normal(num_tables, self.E, self.D),
            "w_out": normal(num_tables, self.E, self.D),
        }


def exact(inputs: dict[str, Tensor], activation: str, gate_order: str) -> Tensor:
    """The definition in float64, one channel at a time and with written-out activations."""
    x, score, w_in, w_out = (inputs[name].double() for name in GRADIENTS)
    act = {
        "identity": lambda u: u,
        "relu": lambda u: u.clamp(min=0),
        "gelu_tanh": lambda u: (
            u / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)))
        ),
        "silu": lambda u: u / (1 + torch.exp(-u)),
    }[activation]
    y = torch.zeros_like(x)
    for c in range(score.shape[1]):
        table = 0 if w_in.shape[0] == 1 else c
        chosen = inputs["idx"][:, c].long()
        h = (w_in[table][chosen] * x[:, None]).sum(2)
        s = score[:, c]
        z = act(h * s) if gate_order == "gate_then_act" else act(h) * s
        y = y + (z[:, :, None] * w_out[table][chosen]).sum(1)
    return y


def differentiate(
    function, inputs: dict[str, Tensor], dy: Tensor, *, autocast: bool = False
) -> dict[str, Tensor]:
    """Output and gradients; autocast covers the forward pass, as in training."""
    leaves = {
        name: t.detach().clone().requires_grad_(name in GRADIENTS) for name, t in inputs.items()
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = function(leaves)
    y.backward(dy.to(y.dtype))
    return {"y": y.detach()} | {name: leaves[name].grad for name in GRADIENTS}


def run(activation: str = "identity", gate_order: str = "gate_then_act", rows=None, sums=None):
    return lambda leaves: isoflop_kernels.gathered_linear(
        *leaves.values(), activation=activation, gate_order=gate_order, rows=rows, sums=sums
    )


def rows_of(inputs: dict[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return inputs["w_in"].detach().to(dtype), inputs["w_out"].detach().to(dtype)


def check_rows(case: Case, tolerance: float, dtype: torch.dtype = torch.bfloat16) -> None:
    """What is read are the rows: all results are theirs, and no gradient is rounded to their type.

    x and the score are numbers of the rows' type too, as in training in bfloat16, so that nothing
    but the output and their own gradients has a reason to be rounded.
    """
    inputs = case.inputs()
    for name in ("x", "score"):
        inputs[name] = inputs[name].to(dtype)
    rows = rows_of(inputs, dtype)
    dy = output_gradient(inputs).to(dtype)
    read = inputs | {"w_in": rows[0].double(), "w_out": rows[1].double()}
    expected = expected_of(read, dy, "silu", "gate_then_act")
    # Not the tables at all: NaN of them would be seen.
    poisoned = {n: t * torch.nan if n in ("w_in", "w_out") else t for n, t in inputs.items()}
    actual = differentiate(run("silu", rows=rows), poisoned, dy)
    for name in ("w_in", "w_out"):
        assert actual[name].dtype == torch.float32, name
        assert_close(actual, {name: expected[name]}, tolerance)
    for name in ("y", "x", "score"):
        assert actual[name].dtype == dtype, name
        assert_close(actual, {name: expected[name]}, max(tolerance, torch.finfo(dtype).eps))


def check_sums(case: Case, dtype: torch.dtype | None = None) -> None:
    """Gradients of the tables are added to sums, bit for bit as autograd adds them, and go nowhere.

    The others are what they are without sums. ``dtype`` is that of tokens, scores and rows.
    """
    inputs = case.inputs()
    rows = None
    if dtype is not None:
        inputs |= {name: inputs[name].to(dtype) for name in ("x", "score")}
        rows = rows_of(inputs, dtype)
    dy = output_gradient(inputs).to(inputs["x"].dtype)
    plain = differentiate(run("silu", rows=rows), inputs, dy)
    noise = torch.Generator().manual_seed(9)
    before = [torch.randn(inputs["w_in"].shape, generator=noise) for _ in range(2)]
    sums = before[0].clone(), before[1].clone()
    actual = differentiate(run("silu", rows=rows, sums=sums), inputs, dy)
    for name, was, total in zip(("w_in", "w_out"), before, sums, strict=True):
        assert actual[name] is None
        assert torch.equal(total, was + plain[name]), name
    assert all(torch.equal(actual[name], plain[name]) for name in ("y", "x", "score"))


def output_gradient(inputs: dict[str, Tensor]) -> Tensor:
    return torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(8))


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        error = (actual[name].double() - value).abs().max()
        assert error <= tolerance * value.abs().max(), name


def as_float64(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t if name == "idx" else t.double() for name, t in inputs.items()}


def expected_of(
    inputs: dict[str, Tensor], dy: Tensor, activation: str, gate_order: str
) -> dict[str, Tensor]:
    """Output and gradients by the definition, in float64."""
    return differentiate(lambda t: exact(t, activation, gate_order), as_float64(inputs), dy)


def opcheck(
    name: str,
    inputs: dict[str, Tensor],
    activation: str = "silu",
    gate_order: str = "gate_then_act",
    *,
    with_rows: bool = False,
) -> None:
    """torch's own checks of a registered operation and of its backward operation."""
    leaves = {n: t.requires_grad_(n in GRADIENTS) for n, t in inputs.items()}
    plain = [t.detach() for t in leaves.values()]
    h = torch.zeros(inputs["idx"].shape)
    backward = (plain[0], *plain, h, "silu", "gate_then_act", [True, False, True, True])
    ops = torch.ops.isoflop_kernels
    forward = (*leaves.values(), activation, gate_order)
    if with_rows:
        rows = rows_of(inputs, torch.bfloat16)
        forward = (*forward, *rows)
        backward = (*backward[:4], *rows, *backward[6:], torch.float32, torch.float64)
    sums = torch.zeros_like(plain[3]), torch.zeros_like(plain[4])
    added = (*backward[:10], *sums)
    torch.library.opcheck(getattr(ops, f"{name}_backward_sum").default, added)
    torch.library.opcheck(getattr(ops, name).default, forward)
    torch.library.opcheck(getattr(ops, f"{name}_backward").default, backward)


def check_int64_and_strided(case: Case) -> None:
    """Wide expert numbers and arguments that are spread in memory change nothing."""
    inputs = case.inputs()
    dy = output_gradient(inputs)
    expected = differentiate(run(), inputs, dy)
    inputs["idx"] = inputs["idx"].long()
    strided = {name: spread(t) for name, t in inputs.items()}
    assert not strided["x"].is_contiguous()
    leaves = {n: t.requires_grad_(n in GRADIENTS) for n, t in strided.items()}
    y = run()(leaves)
    y.backward(spread(dy))
    assert torch.equal(y, expected["y"])
    assert all(torch.equal(leaves[name].grad, expected[name]) for name in GRADIENTS)


def spread(tensor: Tensor) -> Tensor:
    """The same values, transposed in memory and two elements apart."""
    return (
        torch.stack([tensor, tensor], dim=-1).transpose(0, 1).contiguous().transpose(0, 1)[..., 0]
    )
