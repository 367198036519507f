"""Families from outside the package: a bilinear one, honest or lying, and a routed one."""

from __future__ import annotations

from pathlib import Path

SPEC = """
from dataclasses import dataclass

from isoflop.accounting import Component

free_dimension = ("hidden_width",)


@dataclass(frozen=True, kw_only=True)
class Config:
    hidden_width: int
    mix: str = "product"

    def __post_init__(self):
        if self.mix not in ("product", "sum"):
            raise ValueError(self.mix)


def ledger(config, d_model, seq_len):
    params = 3 * d_model * config.hidden_width
    return (
        Component(
            name="experts",
            flops_per_token=2 * params + EXTRA,
            num_params=params,
            num_active_params=params,
        ),
    )


def ladder(recipe, size):
    return Config(hidden_width=2 * recipe.shape(size).d_model)
"""

MODULE = '''
import torch
from torch import nn

from isoflop.model.init import trunc_normal

from .spec import Config


class Bilinear(nn.Module):
    """(x A * x B) C."""

    def __init__(self, config: Config, d_model: int) -> None:
        super().__init__()
        self.mix = config.mix
        self.a = nn.Parameter(torch.empty(d_model, config.hidden_width))
        self.b = nn.Parameter(torch.empty(d_model, config.hidden_width))
        self.c = nn.Parameter(torch.empty(config.hidden_width, d_model))

    def initialisers(self):
        return {name: trunc_normal(getattr(self, name).shape[0] ** -0.5) for name in "abc"}

    def forward(self, x):
        a, b = x @ self.a, x @ self.b
        return (a * b if self.mix == "product" else SUM) @ self.c


def build(config, d_model):
    return Bilinear(config, d_model)
'''

TRUE_SUM = "a + b"
# Work that the ledger does not know of, in one of the family's words only.
HEAVY_SUM = "(a + b + (x @ self.a))"
UNCOUNTED_SUM = "torch.stack([torch.mv(self.b.T, row) + at for row, at in zip(x, a)])"


def write_family(folder: Path, *, extra: str = "0", mix: str = TRUE_SUM) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.py").write_text(SPEC.replace("EXTRA", extra))
    (folder / "module.py").write_text(MODULE.replace("SUM", mix))
    return folder


ROUTED_SPEC = """
from dataclasses import dataclass

from isoflop.families.sgatlin import spec as sgatlin

free_dimension = ()


@dataclass(frozen=True, kw_only=True)
class Config:
    lanes: int
    picks: int
    pool: int
    key: int


def inner(config):
    return sgatlin.Config(
        num_channels=config.lanes,
        num_neighbours=config.picks,
        num_experts=config.pool,
        router_width=config.key,
    )


def ledger(config, d_model, seq_len):
    return sgatlin.ledger(inner(config), d_model, seq_len)


def routing(config):
    return sgatlin.routing(inner(config))


def ladder(recipe, size):
    return Config(lanes=2, picks=2, pool=16, key=6)
"""

ROUTED_MODULE = """
from isoflop.families.sgatlin import module

from .spec import inner


def build(config, d_model):
    return module.build(inner(config), d_model)
"""


def write_routed_family(folder: Path) -> Path:
    """Write sgatlin under field names of its own."""
    folder.mkdir(parents=True)
    (folder / "spec.py").write_text(ROUTED_SPEC)
    (folder / "module.py").write_text(ROUTED_MODULE)
    return folder


LOW_RANK_SPEC = """
from dataclasses import dataclass

from isoflop.accounting import dense_component

free_dimension = ()


@dataclass(frozen=True, kw_only=True)
class Config:
    rank: int


def ledger(config, d_model, seq_len):
    params = 2 * d_model * config.rank
    return (dense_component("experts", 2 * params, params),)


def ladder(recipe, size):
    return Config(rank=2 + size // 2)
"""

LOW_RANK_MODULE = """
import torch
from torch import nn

from isoflop.model.init import trunc_normal


class LowRank(nn.Module):
    def __init__(self, d_model, rank):
        super().__init__()
        self.down = nn.Parameter(torch.empty(d_model, rank))
        self.up = nn.Parameter(torch.empty(rank, d_model))

    def initialisers(self):
        return {name: trunc_normal(getattr(self, name).shape[0] ** -0.5) for name in ("down", "up")}

    def forward(self, x):
        return torch.relu(x @ self.down) @ self.up


def build(config, d_model):
    return LowRank(d_model, min(config.rank, 6))
"""


def write_low_rank_family(folder: Path) -> Path:
    """Write a family whose module is what its ledger says up to rank 6, at size 9 of a ladder."""
    folder.mkdir(parents=True)
    (folder / "spec.py").write_text(LOW_RANK_SPEC)
    (folder / "module.py").write_text(LOW_RANK_MODULE)
    return folder
