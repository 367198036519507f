"""What counting a module gave, or what its user declared: FLOPs per token and parameters.

`isoflop.model.count` counts, with torch; nothing here needs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from isoflop.accounting.conventions import get_convention, not_known
from isoflop.accounting.ledger import TRAINING_PASSES, Component, Ledger, add_up
from isoflop.errors import UserError
from isoflop.validate import CLOSED, Ge, validated

_Whole = Annotated[int, Ge(0)]
_Some = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleFlops:
    """One module of a counted model, with all that is inside it."""

    __pydantic_config__: ClassVar = CLOSED

    path: str
    """Names of attributes from the model down to it, with dots; empty for the model itself."""
    kind: str
    """Name of its class."""
    flops: _Whole
    """Forward FLOPs per token."""
    training_flops: _Whole
    """Forward and backward FLOPs per token."""
    num_params: _Whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """FLOPs per token and parameters of one model; all numbers are whole."""

    __pydantic_config__: ClassVar = CLOSED

    training_flops: _Some
    """FLOPs per token of the forward and the backward pass; rounded up where the tokens of the
    example do not divide them."""
    flops: _Some | None = None
    """Forward FLOPs per token; None where they were declared."""
    n_params: _Some
    """Parameters held; one that has several names counts once."""
    n_active: _Some
    """Parameters that a token uses: all, unless they were declared."""
    n_nonembed: _Whole
    """Parameters but the tables that token ids or positions look up."""
    declared: bool = False
    """Whether the numbers are the user's own, so that no parts are known."""
    declared_operators: tuple[str, ...] = ()
    """Operators whose FLOPs come from a formula that the user registered with torch."""
    components: tuple[Component, ...] = ()
    """Forward and training FLOPs per token and parameters by component; empty if declared."""
    modules: tuple[ModuleFlops, ...] = ()
    """The same by module, the model itself first; empty if declared."""
    num_tokens: _Some | None = None
    """Tokens of the example that was counted."""
    seq_len: _Some | None = None
    """Tokens of one of its sequences."""
    n_layers: _Some | None = None
    """Modules that hold products of activations (attention); None where there are none."""
    n_heads: _Some | None = None
    """Heads of each; None where they differ or their products are not those of heads."""
    all_pairs: bool = True
    """Whether products of activations are over all pairs of a sequence's tokens, as attention's."""
    elementwise_per_token: _Whole | None = None
    """Entries that elementwise operators and reductions wrote in forward and backward pass; they
    count 0 FLOPs."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know."""

    @classmethod
    def declared_from(
        cls,
        *,
        flops_per_token: int,
        n_params: int,
        n_active: int | None = None,
        n_nonembed: int | None = None,
        seq_len: int | None = None,
    ) -> Self:
        """Return what a user declared.

        Args:
            flops_per_token: forward and backward pass.
            n_params: parameters held.
            n_active: parameters that a token uses; all by default.
            n_nonembed: parameters outside embedding tables; all by default.
            seq_len: tokens of a sequence that they hold for.

        Raises:
            UserError: a number that is not whole or positive, or more of a part than of the whole.
        """
        active = n_params if n_active is None else n_active
        nonembed = n_params if n_nonembed is None else n_nonembed
        given = {"flops_per_token": flops_per_token, "n_params": n_params, "n_active": active}
        for name, value in {**given, "n_nonembed": nonembed}.items():
            least = 0 if name == "n_nonembed" else 1
            if type(value) is not int or value < least:
                raise UserError(name, value, f"a whole number of {least} or more", "correct it")
            if name in ("n_active", "n_nonembed") and value > n_params:
                raise UserError(name, value, f"n_params = {n_params} or less", "correct it")
        return cls(
            training_flops=flops_per_token,
            n_params=n_params,
            n_active=active,
            n_nonembed=nonembed,
            declared=True,
            seq_len=seq_len,
        )

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Return a count from :meth:`to_json`.

        Raises:
            UserError: the first wrong key.
        """
        return validated(cls, values, what="count")

    def to_json(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return dataclasses.asdict(self)

    @property
    def rests_on_declared(self) -> bool:
        """Whether FLOPs are the user's own: all of them, or those of an operator."""
        return self.declared or bool(self.declared_operators)

    @property
    def flops_by_component(self) -> Mapping[str, int]:
        """Forward FLOPs per token by component; empty if declared."""
        return {c.name: c.flops_per_token for c in self.components}

    def ledger(self) -> Ledger:
        """Return the count as a ledger, to which a convention can be applied.

        Of declared numbers nothing is known by component: all are `other`.
        """
        components = self.components or (
            Component(
                name="other",
                flops_per_token=self.training_flops // TRAINING_PASSES,
                counted_training_flops_per_token=self.training_flops,
                num_params=self.n_params,
                num_active_params=self.n_active,
            ),
        )
        return Ledger(
            components=add_up(components),
            num_embedding_params=self.n_params - self.n_nonembed,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            seq_len=self.seq_len or 1,
        )

    def training_flops_per_token(self, convention: str) -> int:
        """Return training FLOPs per token under a convention; declared ones are the same in each.

        Raises:
            UserError: there is no such convention, or the model does not show what it counts.
        """
        count = get_convention(convention)
        if self.declared:
            return self.training_flops
        if convention == "causal" and not self.all_pairs:
            raise not_known(convention, "scores of every pair of tokens")
        return count(self.ledger())
