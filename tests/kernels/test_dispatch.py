from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import isoflop_kernels
from isoflop_kernels import implementation, use_implementation
from isoflop_kernels.product_key_topk import op


def test_bag_is_the_default_and_empty_means_unset(monkeypatch):
    monkeypatch.delenv("ISOFLOP_KERNELS", raising=False)
    assert implementation() == "bag"
    monkeypatch.setenv("ISOFLOP_KERNELS", "")
    assert implementation() == "bag"


def test_selection_is_compiled_unless_told_otherwise(monkeypatch):
    calls = []
    for name in ("cpp", "bag"):
        monkeypatch.setitem(
            op._PAIRS,
            name,
            lambda sim, k, name=name: calls.append(name) or sim.new_zeros(1, 2, 1, k).long(),
        )
        monkeypatch.setitem(
            op._INDICES, name, lambda v, k, name=name: calls.append(name) or v.new_zeros(k).long()
        )
    monkeypatch.delenv("ISOFLOP_KERNELS", raising=False)
    isoflop_kernels.product_key_topk(torch.zeros(1, 2, 1, 3), 2)
    isoflop_kernels.stable_topk(torch.zeros(3), 2)
    assert calls == ["cpp", "cpp"]
    monkeypatch.setenv("ISOFLOP_KERNELS", "bag")
    isoflop_kernels.stable_topk(torch.zeros(3), 2)
    assert calls[2:] == ["bag"]


def test_the_variable_is_read_at_every_call_and_the_context_wins(monkeypatch):
    monkeypatch.setenv("ISOFLOP_KERNELS", "reference")
    assert implementation() == "reference"
    with use_implementation("bag"):
        assert implementation() == "bag"
        with use_implementation("reference"):
            assert implementation() == "reference"
        assert implementation() == "bag"
    monkeypatch.setenv("ISOFLOP_KERNELS", "bag")
    assert implementation() == "bag"


def test_the_context_ends_with_its_block_even_on_errors(monkeypatch):
    monkeypatch.delenv("ISOFLOP_KERNELS", raising=False)
    with pytest.raises(KeyError), use_implementation("reference"):
        raise KeyError
    assert implementation() == "bag"


@pytest.mark.parametrize("name", ["Bag", "fast", "reference "])
def test_unknown_names_are_refused(name, monkeypatch):
    monkeypatch.setenv("ISOFLOP_KERNELS", name)
    with pytest.raises(
        ValueError, match="ISOFLOP_KERNELS = .* is unknown: must be one of reference, bag"
    ):
        isoflop_kernels.stable_topk(torch.randn(3), 1)
    with pytest.raises(ValueError, match="use_implementation = .* is unknown"):
        use_implementation(name).__enter__()


def test_each_name_reaches_its_own_code(monkeypatch):
    """Only the bag is one registered operation; only the reference multiplies matrices."""
    seen = {}
    for name in ("reference", "bag"):
        monkeypatch.setenv("ISOFLOP_KERNELS", name)
        score = torch.randn(5, 2, 3, requires_grad=True)
        y = isoflop_kernels.gathered_linear(
            torch.randn(5, 4),
            torch.zeros(5, 2, 3, dtype=torch.int32),
            score,
            torch.randn(2, 6, 4),
            torch.randn(2, 6, 4),
        )
        seen[name] = y.grad_fn.name()
    assert "isoflop_kernels_gathered_linear" in seen["bag"]
    assert "isoflop_kernels" not in seen["reference"]


# What torch imports for it uses what torch advises against.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["bag", "cpp", "triton"])
@pytest.mark.parametrize("argument", [0, 2, 3, 4])
def test_forward_mode_is_refused_where_there_is_none(name, argument):
    """And not taken for zero, as torch does with what an operator does not say."""
    inputs = [torch.randn(5, 4), torch.zeros(5, 2, 3, dtype=torch.int32), torch.randn(5, 2, 3)]
    inputs += [torch.randn(2, 6, 4), torch.randn(2, 6, 4)]

    def run(value):
        changed = [value if number == argument else each for number, each in enumerate(inputs)]
        return isoflop_kernels.gathered_linear(*changed)

    one = inputs[argument]
    with use_implementation("reference"):
        y, tangent = torch.func.jvp(run, (one,), (one,))
    # It is linear in each of them.
    torch.testing.assert_close(tangent, y)
    with use_implementation(name), pytest.raises(NotImplementedError, match="no forward-mode"):
        torch.func.jvp(run, (one,), (one,))


@pytest.mark.slow
def test_works_where_triton_and_isoflop_cannot_be_imported_and_warns_about_nothing():
    code = """
import sys, warnings
sys.modules["triton"] = sys.modules["isoflop"] = None
warnings.simplefilter("error")
import torch, isoflop_kernels
w = torch.randn(1, 25, 4, requires_grad=True)
score, idx = isoflop_kernels.product_key_topk(torch.randn(2, 2, 1, 5), 2)
isoflop_kernels.gathered_linear(torch.randn(2, 4), idx, score, w, w).sum().backward()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference", "bag", "cpp"])
def test_both_operators_compile_into_one_graph(name):
    def layer(sim, x, w_in, w_out):
        score, idx = isoflop_kernels.product_key_topk(sim, 3)
        return isoflop_kernels.gathered_linear(x, idx, score, w_in, w_out, "silu")

    shapes = ((6, 2, 2, 5), (6, 8), (2, 25, 8), (2, 25, 8))
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    with use_implementation(name):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(*inputs)
        plain = layer(*inputs)
    torch.testing.assert_close(compiled, plain)
    gradients = [torch.autograd.grad(y.sum(), inputs) for y in (compiled, plain)]
    torch.testing.assert_close(*gradients)
