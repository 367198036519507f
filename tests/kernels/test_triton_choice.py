"""Which version of the Triton passes a call takes, by types and sizes; nothing is launched."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from isoflop_kernels.bench.cases import SCALES
from isoflop_kernels.gathered_linear.choice import VARIABLE, Sizes, faster, version

# Scale 8 of the paper at the tokens of one step.
LARGE = Sizes(
    num_tokens=2**17, width=1024, num_channels=16, num_chosen=8, num_tables=16, num_experts=112**2
)


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def chosen(sizes: Sizes, *dtypes: torch.dtype) -> str:
    x = torch.empty(sizes.num_tokens, sizes.width, dtype=dtypes[0], device="meta")
    idx = torch.empty(sizes.num_tokens, sizes.num_channels, sizes.num_chosen, device="meta")
    shape = sizes.num_tables, sizes.num_experts, sizes.width
    w_in, w_out = (torch.empty(shape, dtype=dtype, device="meta") for dtype in dtypes[1:])
    return version(x, idx, w_in, w_out)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_takes_what_is_predicted_to_be_faster(half):
    assert faster(LARGE) == chosen(LARGE, half, half, half) == "v2"
    few = dataclasses.replace(LARGE, num_tokens=256)
    assert faster(few) == chosen(few, half, half, half) == "v1"


def test_of_the_scales_of_the_paper_only_the_largest_pays_for_grouping():
    found = {
        number: faster(dataclasses.replace(LARGE, width=width, num_experts=num_keys**2))
        for number, (width, num_keys) in SCALES.items()
    }
    assert found == dict.fromkeys(range(2, 8), "v1") | {8: "v2"}


def test_one_choice_per_channel_gains_nothing_from_groups():
    assert faster(dataclasses.replace(LARGE, num_chosen=1)) == "v1"


@pytest.mark.parametrize("asked", ["", "v2"])
@pytest.mark.parametrize(
    "change", [{"num_experts": 112**2 + 1}, {"num_experts": 129**2}, {"num_chosen": 17}]
)
def test_sizes_that_v2_cannot_take(change, asked, monkeypatch):
    monkeypatch.setenv(VARIABLE, asked)
    half = torch.bfloat16
    assert chosen(dataclasses.replace(LARGE, **change), half, half, half) == "v1"


def test_mixed_types_take_v1_and_float32_too_unless_asked(monkeypatch):
    half, single = torch.bfloat16, torch.float32
    assert chosen(LARGE, single, single, single) == "v1"
    monkeypatch.setenv(VARIABLE, "v2")
    assert chosen(LARGE, single, single, single) == "v2"
    for dtypes in ((half, half, single), (half, single, half), (single, half, half)):
        assert chosen(LARGE, *dtypes) == "v1"


def test_the_environment_overrides_the_prediction(monkeypatch):
    half = [torch.bfloat16] * 3
    monkeypatch.setenv(VARIABLE, "v1")
    assert chosen(LARGE, *half) == "v1"
    monkeypatch.setenv(VARIABLE, "v2")
    assert chosen(dataclasses.replace(LARGE, num_tokens=1), *half) == "v2"


def test_an_unknown_version_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "v3")
    with pytest.raises(ValueError, match="ISOFLOP_KERNELS_TRITON = 'v3' is unknown: must be one"):
        chosen(LARGE, *[torch.float32] * 3)
