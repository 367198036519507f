"""Which part of a model each product of it belongs to: the components of a ledger.

The rules stand in isoflop/accounting/README.md ("FLOPs of any module"). They look at how values
flow and at few names, since the code is someone else's; totals do not depend on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from isoflop.model.flop_counter import operator_name
from isoflop.model.products import Product

_ROUTER = re.compile(r"router|gate|gating|gate_network|wg")
_BIAS = re.compile(r".*bias.*|b\d*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """A parameter of the model."""

    path: str
    """Its first name, with dots."""
    tensor: Tensor

    @property
    def owner(self) -> str:
        """Path of the module that has it."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Return its own name."""
        return self.path.rpartition(".")[2]


class Parts:
    """The component of each product and each parameter.

    Args:
        products: of one example.
        parameters: of the model, by number.
        tables: numbers of parameters that are looked up, and whether by the inputs.
    """

    def __init__(
        self, products: Sequence[Product], parameters: Sequence[Parameter], tables: dict[int, bool]
    ) -> None:
        self._products = products
        self._parameters = parameters
        self._tables = tables
        self._weighted = [p for p in products if p.parameters]
        # All modules with weights of their own or inside; of these, with a choice by them.
        self._with_weights = {path for p in self._weighted for path in upwards(p.path)}
        self._with_choice = {
            path for p in self._weighted if p.is_selected_by for path in upwards(p.path)
        }
        self._mixtures = self._find_mixtures()
        self.scores = [p for p in products if p.of_activations]
        self.attention = self._find_attention()
        self._own_modules = {m for m in self.attention if not is_block(m)}
        # All modules but the model that attention is inside of.
        self._with_attention = {path for m in self.attention for path in upwards(m) if path}
        self._in_flow = self._find_flow()
        self.head = self._find_head()

    def component(self, product: Product) -> str:
        """Return the component that a product belongs to."""
        if product in self.head:
            return "head"
        if product.of_activations:
            return "router" if self._is_mixing(product) else "attn_scores"
        if self._is_router(product):
            return "router"
        if product in self._in_flow or not self._own_modules.isdisjoint(upwards(product.path)):
            return "attn_proj"
        if "convolution" in operator_name(product.operator) or not product.parameters:
            return "other"
        return "experts" if self._is_in_block(product.path) else "other"

    def of_parameter(self, number: int) -> str:
        """Return the component that a parameter belongs to.

        That of the products it is in; a table of tokens is the head's, a bias goes with the largest
        weight beside it, and what only scales or shifts is a norm.
        """
        for product in self._weighted:
            if number in product.parameters:
                return self.component(product)
        if number in self._tables:
            return "head" if self._tables[number] else "other"
        parameter = self._parameters[number]
        beside = [
            (self._parameters[n].tensor.numel(), product)
            for product in self._weighted
            for n in product.parameters
            if self._parameters[n].owner == parameter.owner
        ]
        if beside and _BIAS.fullmatch(parameter.name):
            return self.component(max(beside, key=lambda each: each[0])[1])
        return "norms"

    def _holder(self, product: Product) -> str:
        """Return the innermost module around a product that has weights of its own or inside."""
        return next((p for p in upwards(product.path) if p in self._with_weights), "")

    def _find_mixtures(self) -> set[str]:
        """Return modules in which a choice is made of what a weight gives: mixtures of experts."""
        return {
            self._holder(p)
            for p in self._weighted
            if p.is_selected_by and not is_block(self._holder(p))
        } | {parent for p in self._weighted if (parent := self._named_mixture(p)) is not None}

    def _named_mixture(self, product: Product) -> str | None:
        """Return the module whose `router` or `gate` stands beside its `experts`."""
        for path in upwards(product.path):
            parent, _, name = path.rpartition(".")
            if _ROUTER.fullmatch(name):
                beside = f"{parent}.experts" if parent else "experts"
                if beside in self._with_weights:
                    return parent
        return None

    def _is_mixing(self, product: Product) -> bool:
        """Return whether a product of activations sends tokens to experts, or adds up theirs."""
        by_choice = any(p.parameters and p.is_selected_by for p in product.sources)
        return by_choice or self._holder(product) in self._mixtures

    def _is_router(self, product: Product) -> bool:
        if product.is_selected_by:
            return True
        in_router = any(
            path in self._with_choice and _ROUTER.fullmatch(path.rpartition(".")[2])
            for path in upwards(product.path)
        )
        return in_router or self._named_mixture(product) is not None

    def _find_attention(self) -> list[str]:
        """Return modules that hold products of activations, in order of their first."""
        found: dict[str, None] = {}
        for product in self.scores:
            if not self._is_mixing(product):
                found[self._holder(product)] = None
        return list(found)

    def _find_flow(self) -> set[Product]:
        """Return products that give queries, keys and values, or take what attention gives.

        For attention that is computed in the forward pass of a whole block, whose feed-forward is
        in the same module.
        """
        around = {p for p in self.scores if is_block(self._holder(p)) and not self._is_mixing(p)}
        into = {source for p in around for source in p.sources if source.parameters}
        return into | {p for p in self._weighted if p.sources & around}

    def _find_head(self) -> set[Product]:
        """Return products with the table of tokens, or with the last weight if it gives logits."""
        tokens = {n for n, by_input in self._tables.items() if by_input}
        weights = {n for p in self._weighted if p.parameters & tokens for n in p.parameters}
        rows = {self._parameters[n].tensor.shape[0] for n in tokens}
        if self._weighted and self._weighted[-1].shape[-1:] and rows:
            last = self._weighted[-1]
            if last.shape[-1] in rows or not self._is_in_block(last.path):
                weights |= last.parameters
        return {p for p in self._weighted if p.parameters & weights}

    def _is_in_block(self, path: str) -> bool:
        """Return whether a path is one of many alike, or inside what also holds attention."""
        if any(name.isdecimal() for name in path.split(".")) or "" in self.attention:
            return True
        return not self._with_attention.isdisjoint(upwards(path))


def is_block(path: str) -> bool:
    """Return whether a module is the model itself or an element of a list."""
    return path.rpartition(".")[2].isdecimal() or not path


def upwards(path: str) -> Iterator[str]:
    """Yield a path and those of all modules around it, the model's own last."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
