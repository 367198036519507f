"""What only the C++ implementation has: its build, its fallbacks, its vectors and its threads."""

# T tokens, D width, C channels, K experts chosen per channel, E experts per table,
# N sub-keys per half

from __future__ import annotations

import concurrent.futures
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import isoflop_kernels
from isoflop_kernels.cpp import build
from isoflop_kernels.product_key_topk import cpp as selection


def has_compiler() -> bool:
    try:
        build.compiler()
    except RuntimeError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler here")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache folder, and a process that has not looked for the library yet."""
    monkeypatch.setenv("ISOFLOP_KERNELS_CACHE", str(tmp_path / "kernels"))
    build.library.cache_clear()
    yield tmp_path / "kernels"
    build.library.cache_clear()


def layer(dtype: torch.dtype = torch.float32, **sizes: int) -> tuple[list[Tensor], Tensor]:
    size = {"T": 40, "D": 24, "C": 3, "K": 5, "E": 11} | sizes
    generator = torch.Generator().manual_seed(3)
    T, D, C, K, E = size.values()
    x, score, w_in, w_out = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((T, D), (T, C, K), (C, E, D), (C, E, D))
    )
    idx = torch.randint(E, (T, C, K), generator=generator, dtype=torch.int32)
    return [x.requires_grad_(), idx, score.requires_grad_(), w_in, w_out], x.detach().flip(0)


def results(
    name: str, arguments: list[Tensor], dy: Tensor, activation: str = "identity"
) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in arguments]
    with isoflop_kernels.use_implementation(name):
        y = isoflop_kernels.gathered_linear(*leaves, activation=activation)
    y.backward(dy)
    return [y.detach(), *(t.grad for t in leaves if t.grad is not None)]


@pytest.mark.slow
@needs_compiler
def test_a_library_is_built_once_and_kept(fresh):
    assert build.library() is not None
    (path,) = fresh.iterdir()
    built = path.stat().st_mtime_ns
    build.library.cache_clear()
    assert build.library() is not None
    assert [p.stat().st_mtime_ns for p in fresh.iterdir()] == [built]


@pytest.mark.slow
@needs_compiler
def test_builds_at_the_same_time_do_not_disturb_each_other(fresh):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        paths = [job.result() for job in [pool.submit(build._built) for _ in range(3)]]
    assert len(set(paths)) == 1
    assert list(fresh.iterdir()) == paths[:1]


@needs_compiler
def test_other_sources_compilers_and_processors_get_another_library(monkeypatch):
    command = build.compiler()
    keys = {build._key(command), build._key([*command, "-DOTHER"])}
    monkeypatch.setattr(build, "_processor", lambda: "another")
    keys.add(build._key(command))
    monkeypatch.setattr(build, "SOURCES", build.SOURCES[:1])
    keys.add(build._key(command))
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("broken", "message"),
    [("none", "no C++ compiler found"), ("failing", "false failed"), ("folder", "kernels")],
)
def test_without_a_library_the_bag_takes_over_with_one_log_line(
    broken, message, fresh, monkeypatch, caplog
):
    if broken == "none":
        monkeypatch.setenv("PATH", str(fresh))
        monkeypatch.delenv("CXX", raising=False)
    elif broken == "failing":
        monkeypatch.setenv("CXX", "false")
    else:
        fresh.write_text("a file where the folder should be")
    arguments, dy = layer()
    sim = torch.randn(9, 2, 2, 6)
    with caplog.at_level(logging.INFO, logger="isoflop_kernels"):
        ours = results("cpp", arguments, dy, "silu")
        with isoflop_kernels.use_implementation("cpp"):
            _, idx = isoflop_kernels.product_key_topk(sim, 3)
    assert all(map(torch.equal, ours, results("bag", arguments, dy, "silu")))
    assert torch.equal(idx, isoflop_kernels.product_key_topk(sim, 3)[1])
    (record,) = caplog.records
    assert record.getMessage().startswith("no C++ kernels, using the bag implementation: ")
    assert message in record.getMessage()


@needs_compiler
@pytest.mark.parametrize("width", [1, 7, 8, 15, 16, 24, 40, 63, 64, 72, 129, 200])
def test_every_way_to_cut_a_row_into_vectors(width):
    for chosen in (1, 3, 4, 6):
        arguments, dy = layer(torch.float64, D=width, K=chosen)
        expected = results("reference", arguments, dy)
        actual = results("cpp", [t.float() if t.is_floating_point() else t for t in arguments], dy)
        for ours, exact in zip(actual, expected, strict=True):
            assert (ours - exact).abs().max() <= 1e-6 * exact.abs().max(), chosen


@needs_compiler
def test_channels_are_visited_in_groups_where_tables_are_large():
    """Two, one and one channels fit the cache at a time; then the slices of a row."""
    arguments, dy = layer(torch.float64, C=5, E=700, D=130, T=30)
    expected = results("reference", arguments, dy)
    actual = results("cpp", [t.float() if t.is_floating_point() else t for t in arguments], dy)
    for ours, exact in zip(actual, expected, strict=True):
        assert (ours - exact).abs().max() <= 1e-6 * exact.abs().max()


@needs_compiler
def test_results_are_bit_identical_for_any_number_of_threads():
    arguments, dy = layer(T=1500, D=40, C=4, K=4, E=60)
    sim = torch.randint(5, (1001, 2, 3, 9)).float()
    num_threads = torch.get_num_threads()
    try:
        seen = []
        for threads in (1, 2, 3, 7, 1):
            torch.set_num_threads(threads)
            with isoflop_kernels.use_implementation("cpp"):
                selected = [*isoflop_kernels.product_key_topk(sim, 4)]
                selected += isoflop_kernels.stable_topk(sim, 4)
            seen.append([*results("cpp", arguments, dy, "silu"), *selected])
    finally:
        torch.set_num_threads(num_threads)
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_registered_operations_pass_opcheck(autocast, dtype):
    arguments, _ = layer(dtype, T=4, C=2)
    plain = [t.detach() for t in arguments]
    h = torch.zeros(arguments[1].shape)
    sim = torch.randn(4, 2, 3, 6).to(dtype).transpose(0, 2).contiguous().transpose(0, 2)
    operations = torch.ops.isoflop_kernels
    forward = (*arguments, "gelu_tanh", "act_then_gate")
    backward = (plain[0], *plain, h, "silu", "gate_then_act", [True, False, True, True])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.library.opcheck(operations.gathered_linear_cpp.default, forward)
        torch.library.opcheck(operations.gathered_linear_cpp_backward.default, backward)
        torch.library.opcheck(operations.product_key_pairs_cpp.default, (sim, 3))
        torch.library.opcheck(operations.topk_indices_cpp.default, (sim, 3))


@st.composite
def rows(draw) -> tuple[Tensor, int]:
    """Rows whose sums tie often, by chance or by rounding; also the k with their own templates."""
    num_keys = draw(st.integers(1, 14))
    k = draw(st.sampled_from([k for k in (1, 2, 4, 5, 8, 9) if k <= num_keys]))
    shape = (draw(st.integers(1, 6)), 2, draw(st.integers(1, 3)), num_keys)
    choice = st.sampled_from(
        draw(st.sampled_from([[0.0, -0.0, 1.0, -1.0], [2.0**24, 2.0**24 + 2, 1.0, 0.5, -1e-30]]))
    )
    count = int(np.prod(shape))
    values = draw(st.lists(choice, min_size=count, max_size=count))
    return torch.tensor(values).view(shape), k


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(rows())
def test_selection_equals_the_reference_where_sums_tie(sim_and_k):
    sim, k = sim_and_k
    chosen = {}
    for name in ("reference", "cpp"):
        with isoflop_kernels.use_implementation(name):
            chosen[name] = [*isoflop_kernels.product_key_topk(sim, k)]
            chosen[name] += isoflop_kernels.stable_topk(sim, k)
    assert all(map(torch.equal, chosen["cpp"], chosen["reference"]))


@pytest.mark.parametrize("k", [selection.MAX_K - 1, selection.MAX_K, selection.MAX_K + 1])
@pytest.mark.parametrize("num_keys", [33, 40])
def test_selection_around_the_largest_k_of_the_library(k, num_keys):
    sim = torch.randint(9, (20, 2, 2, num_keys)).float()
    expected = isoflop_kernels.product_key_topk(sim, k), isoflop_kernels.stable_topk(sim, k)
    with isoflop_kernels.use_implementation("cpp"):
        actual = isoflop_kernels.product_key_topk(sim, k), isoflop_kernels.stable_topk(sim, k)
    assert all(map(torch.equal, sum(actual, ()), sum(expected, ())))


@pytest.mark.parametrize("bad", [-1, 11, 2**31 - 1, -(2**31), 2**32])
def test_experts_out_of_range_are_refused(bad, monkeypatch):
    monkeypatch.delenv("ISOFLOP_KERNELS_DEBUG", raising=False)
    arguments, _ = layer()
    arguments[1] = arguments[1].long()
    arguments[1][3, 1, 2] = bad
    with (
        isoflop_kernels.use_implementation("cpp"),
        pytest.raises(ValueError, match=r"idx_TCK has values .*: must be within 0 to 10"),
    ):
        isoflop_kernels.gathered_linear(*arguments)
