"""The models of a study: each arch at each rung, matched as the study says, worked out once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isoflop.accounting import Ledger, get_convention
from isoflop.errors import UserError
from isoflop.families import config_from_mapping, get_spec
from isoflop.plan.match import Match, relative_difference, solve
from isoflop.plan.runs import ledger_of
from isoflop.recipe import Shape, get_recipe
from isoflop.study import Study

SHAPE_FIELDS = tuple(f.name for f in dataclasses.fields(Shape))
_FALLBACK_REFERENCE = "mlp"
_WHAT = {"flops_per_token": "training FLOPs per token", "active_params": "active parameters"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One arch at one rung and sequence length."""

    family: str
    config: Any
    """The family's configuration."""
    shape: Shape
    ledger: Ledger
    match_residual: float | None
    """Signed relative difference to the reference; None on the recipe's own ladder."""


class Models:
    """The models of a study by arch, rung and sequence length."""

    def __init__(self, study: Study, vocab_size: int) -> None:
        self._study = study
        self._recipe = get_recipe(study.recipe)
        self._convention = get_convention(study.convention)
        self._vocab_size = vocab_size
        self._on_ladder: dict[tuple[str, int, int], Model] = {}
        self._planned: dict[tuple[str, int, int], Model] = {}

    def model(self, arch: str, size: int, seq_len: int) -> Model:
        """Return the model that the study trains.

        Raises:
            UserError: an impossible shape, or none within the tolerance of the reference.
        """
        key = (arch, size, seq_len)
        if key not in self._planned:
            matched = self._study.match != "ladder"
            self._planned[key] = self._match(*key) if matched else self.on_ladder(*key)
        return self._planned[key]

    def on_ladder(self, arch: str, size: int, seq_len: int) -> Model:
        """Return the model of the recipe's ladder, with the overrides of a variant.

        Raises:
            UserError: an impossible shape.
        """
        key = (arch, size, seq_len)
        if key not in self._on_ladder:
            self._on_ladder[key] = self._resolve(arch, size, seq_len)
        return self._on_ladder[key]

    def before_matching(self, arch: str, size: int, seq_len: int) -> Model:
        """What stands for the arch where its matched shape is not needed: its reference, if any.

        Raises:
            UserError: an impossible shape.
        """
        if self._study.match == "ladder":
            return self.on_ladder(arch, size, seq_len)
        return self.on_ladder(self.reference(size, seq_len), size, seq_len)

    def flops_per_token(self, model: Model) -> int:
        """Return training FLOPs per token under the study's convention."""
        return self._convention(model.ledger)

    def reference(self, size: int, seq_len: int) -> str:
        """Return the arch that others are matched to: the named one, the first dense one, or mlp.

        An arch is dense if it has no router.
        """
        if self._study.match_reference is not None:
            return self._study.match_reference
        for arch in self._study.archs:
            if self.on_ladder(arch, size, seq_len).ledger.flops("router") == 0:
                return arch
        return _FALLBACK_REFERENCE

    def match_residual(self, ledger: Ledger, size: int, seq_len: int) -> float | None:
        """Signed relative difference of a model to the reference of its rung.

        Returns None where the study compares the recipe's own ladder.
        """
        if self._study.match == "ladder":
            return None
        return relative_difference(self._counted(ledger), self._target(size, seq_len))

    def _target(self, size: int, seq_len: int) -> int:
        reference = self.on_ladder(self.reference(size, seq_len), size, seq_len)
        return self._counted(reference.ledger)

    def _counted(self, ledger: Ledger) -> int:
        """Return what the study matches."""
        if self._study.match == "active_params":
            return ledger.num_active_params
        return self._convention(ledger)

    def _match(self, arch: str, size: int, seq_len: int) -> Model:
        ladder = self.on_ladder(arch, size, seq_len)
        if arch == self.reference(size, seq_len):
            return dataclasses.replace(ladder, match_residual=0.0)
        _, overrides = self._study.family_and_overrides(arch)

        def count(config: Any) -> int:
            return self._counted(self._ledger(ladder.family, config, ladder.shape, seq_len))

        free_dimension = get_spec(ladder.family).free_dimension
        tolerance = self._study.tolerance
        target = self._target(size, seq_len)
        match = solve(ladder.config, free_dimension, overrides, count, target, tolerance)
        if abs(match.residual) > tolerance:
            raise self._too_far(arch, size, seq_len, free_dimension, match)
        return dataclasses.replace(
            ladder,
            config=match.config,
            ledger=self._ledger(ladder.family, match.config, ladder.shape, seq_len),
            match_residual=match.residual,
        )

    def _resolve(self, arch: str, size: int, seq_len: int) -> Model:
        family, overrides = self._study.family_and_overrides(arch)
        shape = Shape(**(dataclasses.asdict(self._recipe.shape(size)) | _of_shape(arch, overrides)))
        ladder = dataclasses.asdict(get_spec(family).ladder(self._recipe, size))
        own = {name: value for name, value in overrides.items() if name not in SHAPE_FIELDS}
        config = config_from_mapping(family, ladder | own)
        return Model(
            family=family,
            config=config,
            shape=shape,
            ledger=self._ledger(family, config, shape, seq_len),
            match_residual=None,
        )

    def _ledger(self, family: str, config: Any, shape: Shape, seq_len: int) -> Ledger:
        return ledger_of(family, config, shape, self._vocab_size, seq_len)

    def _too_far(
        self, arch: str, size: int, seq_len: int, free_dimension: tuple[str, ...], match: Match
    ) -> UserError:
        shape = ", ".join(f"{name} {getattr(match.config, name)}" for name in free_dimension)
        return UserError(
            "tolerance",
            self._study.tolerance,
            f"{abs(match.residual):.4g} or more for {arch} at size {size}, whose closest shape "
            f"({shape or 'nothing is free'}) is {match.residual:+.2%} from the "
            f"{_WHAT[self._study.match]} of {self.reference(size, seq_len)}",
            f"raise tolerance, leave {arch} size {size} out, or make {arch} a variant with other "
            "fields",
        )


def _of_shape(arch: str, overrides: Mapping[str, int | str]) -> dict[str, Any]:
    """Return the overrides that change the model around the layer."""
    chosen = {name: value for name, value in overrides.items() if name in SHAPE_FIELDS}
    for name, value in chosen.items():
        if type(value) is not int:
            raise UserError(f"{arch}.{name}", value, "a whole number", "correct the variant")
    return chosen
