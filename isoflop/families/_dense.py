"""What mlp, swiglu and moe share: the hidden width of a rung and the count of one gated layer."""

from __future__ import annotations

from isoflop.recipe import Recipe

# The reference rounds 8/3 of the width down to a multiple of 256; micro models are narrower than
# that, so they round down to 8, on a finer ladder to 2.
_HIDDEN_MULTIPLE = {"paper-v1": 256, "micro-v1": 8, "micro-v2": 2}

# The width of the reference's TinyStories models, four times theirs in every family.
TINYSTORIES_HIDDEN_WIDTH = 1024


def dense_hidden_width(recipe: Recipe, size: int) -> int:
    """Return F = 8/3 · D, rounded down to the recipe's multiple; the same for mlp and swiglu."""
    if recipe.base_name == "tinystories-v1":
        return TINYSTORIES_HIDDEN_WIDTH
    multiple = _HIDDEN_MULTIPLE[recipe.base_name]
    return recipe.shape(size).d_model * 8 // (3 * multiple) * multiple


def glu_flops_per_token(d_model: int, hidden_width: int) -> int:
    """One gated layer, D × 2F and F × D: 6·D·F FLOPs (reference implementation, FLOP table)."""
    return 6 * d_model * hidden_width


def glu_num_params(d_model: int, hidden_width: int) -> int:
    """Its parameters: the two matrices and their biases [2F] and [D]."""
    return 3 * d_model * hidden_width + 2 * hidden_width + d_model
