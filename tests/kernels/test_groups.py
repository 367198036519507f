"""How the Triton passes sort choices, and what that moves; on the CPU, with torch alone."""

# T tokens, C channels, K experts chosen per channel, E experts per table, N choices

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isoflop_kernels import product_key_topk
from isoflop_kernels.gathered_linear import choice, groups
from isoflop_kernels.gathered_linear.gates import flat_rows

NUM_TOKENS, NUM_CHANNELS, NUM_CHOSEN = 50, 3, 4


def choices(num_experts: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Experts of which many are chosen often, and the last and the first once at least."""
    generator = torch.Generator().manual_seed(num_experts)
    shape = (NUM_TOKENS, NUM_CHANNELS, NUM_CHOSEN)
    idx = torch.randint(min(num_experts, 7), shape, generator=generator)
    idx[-1] = num_experts - 1
    idx[0, 0] = 0
    return idx.to(dtype)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("num_experts", [1, 9, 2**15, 2**15 + 1, 2**17])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_sorting_by_table_is_a_stable_sort_by_row(num_experts, shared, dtype):
    idx, num_tables = choices(num_experts, dtype), 1 if shared else NUM_CHANNELS
    order, start = groups.sort_by_row(idx, num_tables, num_experts)
    # As the kernel numbers choices among those of all tables.
    per_token, per_table = NUM_CHANNELS * NUM_CHOSEN, NUM_CHANNELS * NUM_CHOSEN // num_tables
    table = torch.arange(num_tables).repeat_interleave(NUM_TOKENS * per_table)
    choice = table * per_table + order // per_table * (per_token - per_table) + order
    row, expected = flat_rows(idx.long(), num_tables, num_experts).view(-1).sort(stable=True)
    assert torch.equal(choice, expected)
    count = torch.bincount(row, minlength=num_tables * num_experts)
    assert torch.equal(start.diff(), count)
    assert start.dtype == torch.int32
    assert start[0] == 0


class MovedBytes(TorchDispatchMode):
    """What operators read and write; views and new memory move nothing.

    A radix sort reads and writes keys and numbers of 8 bytes once for every 8 bits of the keys,
    after it has counted the keys and written the numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        name = operator.name()
        is_view = any(r.alias_info and not r.alias_info.is_write for r in operator._schema.returns)
        if name.startswith("aten::sort"):
            key = args[0]
            size = key.element_size()
            self.total += key.numel() * (2 * size * (size + 8) + size + 8)
        elif not is_view and "empty" not in name:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return result


def test_the_bytes_of_grouping_are_those_of_the_prediction():
    """At scale 6: once forward and once backward, by choices."""
    num_tokens, num_channels, num_chosen, num_keys = 4096, 16, 8, 88
    sim = torch.randn(num_tokens, 2, num_channels, num_keys)
    _, idx = product_key_topk(sim, num_chosen)
    with MovedBytes() as moved:
        found = groups.by_group(idx, num_channels, num_keys**2)
        groups.cut(found.start_G1, 128, idx.numel(), at_least=0)
    assert 2 * moved.total / idx.numel() == pytest.approx(choice.GROUPING_BYTES, rel=0.02)
    # What v1 needs instead, in the backward pass alone.
    with MovedBytes() as moved:
        groups.sort_by_row(idx, num_channels, num_keys**2)
    assert moved.total / idx.numel() == pytest.approx(choice.SORTING_BYTES, rel=0.02)
