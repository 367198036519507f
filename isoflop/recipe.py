"""Recipes: named, versioned sets of every constant of a scaling study, each with its source.

A copy under another name (`dataclasses.replace(PAPER_V1, name="mine-v1")`) is a recipe of its own.

A recipe's name ends in its version. Changing a constant means a new name: the name is hashed into
run ids, so results of different constants can never be mistaken for one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from isoflop.errors import UserError

# Between a recipe's name and another peak learning rate: micro-v1@lr=0.006.
_LR_MARK = "@lr="


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Width and depth of one rung of a ladder."""

    d_model: int
    n_layers: int
    n_heads: int

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads"):
            if getattr(self, name) < 1:
                raise UserError(name, getattr(self, name), "1 or more", "correct the study")
        # Rotary embeddings turn pairs of a head's dimensions.
        if self.d_model % (2 * self.n_heads):
            raise UserError(
                "d_model",
                self.d_model,
                f"a multiple of 2 × n_heads ({2 * self.n_heads})",
                "change d_model or n_heads",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """Where the optimum of a budget is expected before anything was trained. An estimate.

    A budget is best spent on the model that it can train on ``tokens_per_param`` tokens for each
    active parameter outside embedding, norms and biases, whatever the budget (Hoffmann et al.
    2022: parameters and tokens grow alike). How many tokens a budget buys follows from the study's
    own convention and sequence length.
    """

    tokens_per_param: float
    source: str
    """What the number was read from."""


def num_decay_steps(steps: int, decay_fraction: float) -> int:
    """Return the steps of the decay phase, rounded down."""
    return int(decay_fraction * steps)


Configs = Mapping[str, Mapping[str, Any]]
"""Fields of the configuration of each family, by its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Ladders, optimizer, schedule and batch rule of a study."""

    name: str
    source: str
    """Where the constants come from."""
    shapes: Callable[[int], Shape]
    """Width, depth and heads of a rung, from 1."""
    configs: Callable[[int, int], Configs]
    """The layers of a rung, from 1, and its width. A family from outside the package may be among
    them, or bring a ladder of its own."""
    peak_lr: float
    weight_decay: float
    """Decoupled decay as torch's AdamW takes it (multiplied by the learning rate)."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    schedule: str = "sqrt"
    """Shape of the decay; see isoflop.train.optimizer."""
    decay_fraction: float = 0.2
    warmup_steps: int | None = None
    """Warm-up steps of every run, or None where `warmup_fraction` sets them."""
    warmup_fraction: float | None = None
    """Warm-up as a share of the run's steps."""
    min_steps: int
    """A run with fewer steps is refused: its schedule would not be the recipe's."""
    most_heldout_tokens: int | None = None
    """Of more held-out tokens than this, evenly spread windows are read; None: all are."""
    precision: str
    """Compute type: `bf16` (autocast, fp32 weights) or `fp32`."""
    small_batch: tuple[int, int]
    """Sequences per batch and tokens per sequence below `large_budget`."""
    large_batch: tuple[int, int]
    """The same from `large_budget` on."""
    large_budget: int
    """Training FLOPs from which the large batch is used."""
    max_size: int | None = None
    """Largest rung of the ladder; None: no end."""
    published_sizes: Mapping[int, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    """Rungs by budget and family, `default` for families not named, where a source fixes them."""
    centre: tuple[int, int] | None = None
    """A budget and the rung in the middle of its grid, for budgets that no source fixes."""
    prior: Prior
    """For `sizes = "auto"`: where optima are expected. It chooses rungs and changes no run."""

    def sizes(self, budget_flops: int, family: str) -> tuple[int, ...]:
        """Return rungs to train at a budget.

        A budget of `published_sizes` takes those. Otherwise the grid is the five rungs around a
        centre that grows with the sixth root of the budget: parameters grow with the cube of the
        rung, and the compute-optimal model with about the square root of compute. A recipe
        without a `centre` takes every rung it has.
        """
        if budget_flops in self.published_sizes:
            by_family = self.published_sizes[budget_flops]
            return by_family.get(family, by_family["default"])
        if self.centre is None:
            assert self.max_size is not None
            return tuple(range(1, self.max_size + 1))
        centre_budget, centre_size = self.centre
        middle = round(centre_size * (budget_flops / centre_budget) ** (1 / 6))
        return tuple(range(max(1, middle - 2), max(1, middle) + 3))

    def shape(self, rung: int) -> Shape:
        """Return width, depth and heads of a rung.

        Raises:
            UserError: the ladder has no such rung.
        """
        if rung < 1 or (self.max_size is not None and rung > self.max_size):
            top = "or more" if self.max_size is None else f"to {self.max_size}"
            raise UserError(
                "sizes", rung, f"a rung of {self.name}'s ladder (1 {top})", "correct the study"
            )
        return self.shapes(rung)

    def config(self, family: str, rung: int) -> Mapping[str, Any]:
        """Return the fields of a family's configuration at a rung.

        Raises:
            UserError: the ladder has no such rung, or none for the family.
        """
        configs = self.configs(rung, self.shape(rung).d_model)
        if family not in configs:
            do = "choose another recipe, or add the family to its configs"
            raise UserError("family", family, f"one of {self.name} ({', '.join(configs)})", do)
        return configs[family]

    def num_warmup_steps(self, steps: int) -> int:
        """Return the warm-up steps of a run of ``steps`` steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        assert self.warmup_fraction is not None
        return int(Fraction(str(self.warmup_fraction)) * steps)

    @property
    def shares_trunks(self) -> bool:
        """Whether runs that differ in length alone are one training until the shorter one decays.

        A warm-up that is a share of the steps, and a cosine, differ from the first step on.
        """
        return self.warmup_steps is not None and self.schedule != "cosine"

    def decay_start(self, steps: int) -> int:
        """Return how many steps a run of ``steps`` completes before its learning rate falls."""
        decays = self.schedule in ("sqrt", "linear")
        return steps - num_decay_steps(steps, self.decay_fraction) if decays else steps

    def batch_and_seq_len(self, budget_flops: int) -> tuple[int, int]:
        """Return sequences per batch and tokens per sequence at a budget."""
        return self.large_batch if budget_flops >= self.large_budget else self.small_batch


def _paper_shape(rung: int) -> Shape:
    return Shape(d_model=128 * rung, n_layers=2 * rung, n_heads=2 * rung)


def _paper_configs(rung: int, d_model: int) -> Configs:
    # Official configurations: N = (16 + 12 s)^2 experts, 16 channels, 8 neighbours, d_key 128.
    num_subkeys = 16 + 12 * rung
    routed = {"num_channels": 16, "num_neighbours": 8, "router_width": 128}
    return {
        **_dense_configs(d_model, multiple=256),
        "moe": {"num_experts": 16, "num_active": 2, "hidden_width": d_model},
        "peer": routed | {"num_experts": (2 * num_subkeys) ** 2},
        "sgatlin": routed | {"num_experts": num_subkeys**2},
    }


def _dense_configs(d_model: int, *, multiple: int) -> Configs:
    """Return F = 8/3 · D, rounded down to a multiple; the same for mlp and swiglu.

    The reference rounds to 256; micro models are narrower than that.
    """
    dense = {"hidden_width": d_model * 8 // (3 * multiple) * multiple}
    return {"mlp": dense, "swiglu": dense}


_MICRO_WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96)


def _micro_shape(rung: int) -> Shape:
    return _narrow_shape(_MICRO_WIDTHS[rung - 1])


def _micro_configs(rung: int, d_model: int) -> Configs:
    router_width = 8 if d_model < 16 else 16 if d_model < 32 else 32
    return _narrow_configs(d_model, router_width, multiple=8)


# About a fifth wider from rung to rung, so that seven of them lie around one optimum.
_FINE_WIDTHS = (6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96)


def _fine_shape(rung: int) -> Shape:
    return _narrow_shape(_FINE_WIDTHS[rung - 1])


def _fine_configs(rung: int, d_model: int) -> Configs:
    # Without the jumps of _micro_configs' router widths: they would bend an isoFLOP profile.
    return _narrow_configs(d_model, 2 * round(1.5 * math.sqrt(d_model)), multiple=2)


def _narrow_shape(d_model: int) -> Shape:
    # From width 16 on, heads of 16 to 28 dimensions, which rotary embeddings can pair.
    n_heads = next(h for h in range(max(1, d_model // 16), 0, -1) if d_model % (2 * h) == 0)
    return Shape(d_model=d_model, n_layers=2, n_heads=n_heads)


def _narrow_configs(d_model: int, router_width: int, *, multiple: int) -> Configs:
    # Scaled down so that the router stays the larger part of the layer, as in the paper.
    num_subkeys = 8 + d_model // 4
    routed = {"num_channels": 4, "num_neighbours": 4, "router_width": router_width}
    return {
        **_dense_configs(d_model, multiple=multiple),
        "moe": {"num_experts": 8, "num_active": 2, "hidden_width": d_model},
        "peer": routed | {"num_experts": (2 * num_subkeys) ** 2},
        "sgatlin": routed | {"num_experts": num_subkeys**2},
    }


def _tinystories_shape(rung: int) -> Shape:
    return Shape(d_model=256, n_layers=4, n_heads=4)


def _tinystories_configs(rung: int, d_model: int) -> Configs:
    # Official configurations: four times the width in every family; N = 1,024 for both routed
    # ones, 8 channels, 8 neighbours, d_key 128.
    dense = {"hidden_width": 1024}
    routed = {"num_channels": 8, "num_neighbours": 8, "num_experts": 1024, "router_width": 128}
    return {
        "mlp": dense,
        "swiglu": dense,
        "moe": {"num_experts": 8, "num_active": 2, **dense},
        "peer": routed,
        "sgatlin": routed,
    }


PAPER_V1 = Recipe(
    name="paper-v1",
    source="arXiv 2606.07414 and its official configuration files",
    shapes=_paper_shape,
    configs=_paper_configs,
    peak_lr=1e-3,
    # Published as 1e-4 divided by the learning rate before it reaches the decoupled decay.
    weight_decay=0.1,
    warmup_steps=1000,
    # 1,000 warm-up steps and a decay over the last 20 % leave no constant phase below this.
    min_steps=1250,
    precision="bf16",
    small_batch=(64, 1024),
    large_batch=(128, 2048),
    # The published sweeps use the small batch at 1e17 and 6e17, the large one at 1e18 and 6e18;
    # the border between them is the geometric mean of 6e17 and 1e18.
    large_budget=774_596_669_241_483_377,
    published_sizes={
        10**17: {"default": (2, 3, 4, 5, 6)},
        6 * 10**17: {"default": (3, 4, 5, 6, 7)},
        10**18: {
            "default": (4, 5, 6, 7),
            "peer": (3, 4, 5, 6, 7),
            "sgatlin": (3, 4, 5, 6, 7),
        },
        6 * 10**18: {"default": (5, 6, 7, 8)},
    },
    centre=(10**17, 4),
    prior=Prior(
        tokens_per_param=63.0,
        source="geometric mean over the 92 runs of the published grids: where they are centred, "
        "which is not a measured optimum; budget means run from 40 (1e17) to 108 (6e18)",
    ),
)

MICRO_V1 = Recipe(
    name="micro-v1",
    source="experiments/quickstart.toml (how it was chosen) and experiments/LOG.md",
    shapes=_micro_shape,
    configs=_micro_configs,
    peak_lr=3e-3,
    weight_decay=0.1,
    warmup_fraction=0.1,
    min_steps=40,
    precision="fp32",
    small_batch=(8, 128),
    large_batch=(8, 128),
    large_budget=0,
    max_size=len(_MICRO_WIDTHS),
    prior=Prior(
        tokens_per_param=111.0,
        source="geometric mean over the 14 interior minima of experiments/LOG.md, 2026-11-24 "
        "(five families, 3e10 to 2e11 FLOPs, one seed); standard deviation of the logarithm 0.27",
    ),
)

MICRO_V2 = replace(
    MICRO_V1,
    name="micro-v2",
    source="micro-v1 with a finer ladder (experiments/cpu_reference.toml)",
    shapes=_fine_shape,
    configs=_fine_configs,
    max_size=len(_FINE_WIDTHS),
    # A tenth of a corpus of novels would take longer than the run that is evaluated on it.
    most_heldout_tokens=2**19,
)

MICRO_V3 = replace(
    MICRO_V2,
    name="micro-v3",
    source="micro-v2 with a fixed number of warm-up steps, as paper-v1 has it; how many, by "
    "experiments/LOG.md, 2026-11-30",
    warmup_fraction=None,
    # Of 20, 50 and 100 the one that loses nothing against micro-v2's tenth from 200 steps on.
    warmup_steps=20,
    # Half of the shortest run is warm-up, a fifth decay: a constant phase is left, unlike at 25.
    min_steps=40,
)

TINYSTORIES_V1 = replace(
    PAPER_V1,
    name="tinystories-v1",
    source="the TinyStories models of arXiv 2606.07414 and its official configuration files",
    shapes=_tinystories_shape,
    configs=_tinystories_configs,
    warmup_steps=100,
    # As in paper-v1: below this, warm-up and decay leave no constant phase.
    min_steps=125,
    clip_norm=2.0,
    small_batch=(256, 1024),
    large_batch=(256, 1024),
    large_budget=0,
    max_size=1,
    published_sizes={},
    centre=None,
)

RECIPES = {
    recipe.name: recipe for recipe in (PAPER_V1, MICRO_V1, MICRO_V2, MICRO_V3, TINYSTORIES_V1)
}


def get_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``, at another peak learning rate where the name ends in one.

    Raises:
        UserError: there is no such recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    base, _, typed = name.partition(_LR_MARK)
    rate = _rate(typed)
    if base not in RECIPES or rate is None or name_at_rate(base, rate) != name:
        raise UserError("recipe", name, " or ".join(RECIPES), "correct the study")
    return replace(RECIPES[base], name=name, peak_lr=rate)


def name_at_rate(name: str, peak_lr: float) -> str:
    """Return the name of a recipe at a peak learning rate: its own where the rate is the recipe's.

    It is hashed into run ids, so each rate has exactly one spelling.
    """
    own = RECIPES[name].peak_lr
    return name if peak_lr == own else f"{name}{_LR_MARK}{float(peak_lr)!r}"


def _rate(text: str) -> float | None:
    try:
        rate = float(text)
    except ValueError:
        return None
    return rate if math.isfinite(rate) and rate > 0 else None
