"""A model's weights by name, as they are stored: each once, also one that has several names.

A family may use one parameter in two places (tied, as input and output projections sometimes are).
It is stored under the first of its names, in the order in which modules are entered.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def stored_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by their first name; the model's own, not copies."""
    first = _first_names(model)
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if first[name] == name}


def stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return those of :func:`stored_weights` that are not trained."""
    return {
        name: value
        for name, value in stored_weights(model).items()
        if not isinstance(value, nn.Parameter)
    }


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy :func:`stored_weights` of an equal model in; names must match exactly.

    Raises:
        RuntimeError: a name or a shape is not the model's.
    """
    first = _first_names(model)
    tied = {name: weights[stored] for name, stored in first.items() if stored in weights}
    model.load_state_dict({**weights, **tied})


def _first_names(model: nn.Module) -> dict[str, str]:
    """Return, for every name in the model's state, the first name of the same tensor."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: first.setdefault(id(value), name) for name, value in state.items()}
