"""Parameters that stand in two places are stored once, and come back to both."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from isoflop.model.weights import load_weights, stored_buffers, stored_weights


class Tied(nn.Module):
    """One matrix there and back, a running mean, and a constant that is no state."""

    def __init__(self) -> None:
        super().__init__()
        self.there = nn.Linear(3, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(3))
        self.back = nn.Linear(3, 3, bias=False)
        self.back.weight = self.there.weight
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("constant", torch.zeros(1), persistent=False)


def test_a_tied_parameter_is_stored_once_under_its_first_name() -> None:
    model = Tied()
    stored = stored_weights(model)
    assert list(stored) == ["scale", "mean", "there.weight"]
    assert list(stored_buffers(model)) == ["mean"]
    assert stored["there.weight"] is model.back.weight
    assert {name for name, _ in model.named_parameters()} == stored.keys() - {"mean"}


def test_it_comes_back_to_both_places_from_a_file() -> None:
    model, other = Tied(), Tied()
    with torch.no_grad():
        model.mean += 2.0
    load_weights(other, load(save(stored_weights(model))))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert other.back.weight is other.there.weight


@pytest.mark.parametrize("change", [{"more": torch.ones(1)}, {"there.weight": torch.ones(2, 2)}])
def test_other_names_or_shapes_are_refused(change: dict[str, torch.Tensor]) -> None:
    model = Tied()
    with pytest.raises(RuntimeError, match=next(iter(change))):
        load_weights(model, {**stored_weights(model), **change})


def test_a_missing_name_is_refused() -> None:
    model = Tied()
    weights = stored_weights(model)
    del weights["there.weight"]
    with pytest.raises(RuntimeError, match=r"there\.weight"):
        load_weights(model, weights)
