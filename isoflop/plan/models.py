"""The models of a study: each arch at each rung, matched as the study says, worked out once.

To match is to find the shape of a family whose count comes closest to a target. What may be solved
for is the family's ``free_dimension``: its first two fields are searched together; the fields after
them are halved, and only where no search before reaches the target (a router that alone costs more
than the whole layer of the reference has to become narrower).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoflop.accounting import Ledger, get_convention
from isoflop.errors import UserError
from isoflop.families import config_from_mapping, get_spec
from isoflop.plan.runs import ledger_of
from isoflop.recipe import Shape, get_recipe
from isoflop.study import Study

NUM_SEARCHED = 2

# Differences that agree to a tenth of the tolerance count as equal; among equals the shape that
# looks most like the ladder's wins, so that shapes change smoothly from size to size.
GRAIN = 0.1
# Half precision matrix products want widths in multiples of 8 (NVIDIA, "Matrix Multiplication
# Background", tensor core requirements).
WIDTH_STEP = 8
# The ratio of channels to neighbours may leave the ladder's by this factor before a reserve is
# touched. Our choice: beyond it a layer is another design.
FARTHEST_RATIO = 4.0
# Softmax over one neighbour is 1 whatever its score: the router of peer would not learn.
AT_LEAST = {"num_neighbours": 2}
# A family may accept only some widths; this many refusals in a row end the search.
_MAX_REFUSED = 256
_LARGEST = 2**40


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A shape and how far it is from the target."""

    config: Any
    """The family's configuration."""
    residual: float
    """(count − target) / target, signed."""
    unlikeness: float
    """How far it is from the ladder's looks; 0 is the same."""


def relative_difference(count: int, target: int) -> float:
    """Return (count − target) / target, to nine digits after the point."""
    return round((count - target) / target, 9)


def solve(
    config: Any,
    free_dimension: Sequence[str],
    pinned: Mapping[str, Any],
    count: Callable[[Any], int],
    target: int,
    tolerance: float,
) -> Match:
    """Return the shape whose count is closest to a target.

    Args:
        config: the ladder's shape, with the overrides of a variant.
        free_dimension: the family's fields that may change.
        pinned: fields that a variant sets; they stay.
        count: what is matched, FLOPs per token or parameters of the model with a configuration;
            larger for larger values of each field.
        target: the count to reach.
        tolerance: largest relative difference.

    Returns:
        The match; where nothing is within the tolerance, the closest shape there is.
    """
    searched = [name for name in free_dimension[:NUM_SEARCHED] if name not in pinned]
    reserves = [name for name in free_dimension[NUM_SEARCHED:] if name not in pinned]
    seen: list[Match] = []
    for start in _with_halved_reserves(config, reserves):
        search = _Search(start, count, target)
        found = list(search.matches(searched))
        near = [
            m
            for m in found
            if abs(m.residual) <= tolerance and m.unlikeness <= math.log(FARTHEST_RATIO)
        ]
        if near:
            return min(near, key=lambda m: _preference(m, tolerance))
        seen += found
    return min(seen, key=lambda m: _preference(m, tolerance))


def _preference(match: Match, tolerance: float) -> tuple[float, float, float]:
    grains = abs(match.residual) // (GRAIN * tolerance)
    return grains, match.unlikeness, abs(match.residual)


def _with_halved_reserves(config: Any, reserves: Sequence[str]) -> Iterator[Any]:
    yield config
    for name in reserves:
        while (value := getattr(config, name) // 2) > 0:
            config = _replaced(config, {name: value})
            if config is None:
                return
            yield config


def _replaced(config: Any, values: Mapping[str, int]) -> Any:
    """Return the configuration with other values; None where the family refuses them."""
    try:
        return dataclasses.replace(config, **values)
    except ValueError:
        # A UserError is one too; families from elsewhere may raise the plain kind.
        return None


class _Search:
    """The shapes on both sides of the target when some fields of a configuration change."""

    def __init__(self, config: Any, count: Callable[[Any], int], target: int) -> None:
        self._config = config
        self._count = count
        self._target = target
        self._counted: dict[tuple[int, ...], tuple[Any, int] | None] = {}

    def matches(self, fields: Sequence[str]) -> Iterator[Match]:
        """Yield candidates; without fields to change, the configuration itself."""
        if not fields:
            yield self._match((self._config, self._count(self._config)), 0.0)
        elif len(fields) == 1:
            yield from self._by_one(fields[0])
        else:
            yield from self._by_two(fields[0], fields[1])

    def _match(self, counted: tuple[Any, int], unlikeness: float) -> Match:
        config, count = counted
        residual = relative_difference(count, self._target)
        return Match(config=config, residual=residual, unlikeness=unlikeness)

    def _at(self, **values: int) -> tuple[Any, int] | None:
        """Return the configuration with these values and its count; None where it is refused."""
        key = tuple(values.values())
        if key not in self._counted:
            too_low = any(value < AT_LEAST.get(name, 1) for name, value in values.items())
            config = None if too_low else _replaced(self._config, values)
            self._counted[key] = None if config is None else (config, self._count(config))
        return self._counted[key]

    def _fits(self, **values: int) -> bool:
        """Return whether these values are accepted and cost no more than the target."""
        counted = self._at(**values)
        return counted is not None and counted[1] <= self._target

    def _by_one(self, name: str) -> Iterator[Match]:
        """Yield the values of one field around the target, multiples of WIDTH_STEP among them."""
        below = self._largest_that_fits(name)
        step = below // WIDTH_STEP * WIDTH_STEP
        ladder = getattr(self._config, name)
        for value in sorted({below, self._accepted(name, below + 1), step, step + WIDTH_STEP}):
            if (counted := self._at(**{name: value})) is not None:
                yield self._match(
                    counted, 0.0 if value in (step, step + WIDTH_STEP, ladder) else 1.0
                )

    def _largest_that_fits(self, name: str) -> int:
        """Return the largest accepted value that costs no more than the target; 0 if none does."""
        low, high = 0, 1
        while high < _LARGEST and self._fits(**{name: self._accepted(name, high)}):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._fits(**{name: self._accepted(name, middle)})
            low, high = (middle, high) if fits else (low, middle)
        return self._accepted(name, low) if low else 0

    def _accepted(self, name: str, value: int) -> int:
        """Return the first value from here on that the family accepts; itself if none is near."""
        near = range(value, value + _MAX_REFUSED)
        return next((v for v in near if self._at(**{name: v}) is not None), value)

    def _by_two(self, outer: str, inner: str) -> Iterator[Match]:
        """Yield for each value of the outer field the inner one's two around the target.

        As the outer value grows, the inner one that still fits can only fall: one walk down.
        """
        ladder = getattr(self._config, outer) / getattr(self._config, inner)
        least = AT_LEAST.get(inner, 1)
        highest = least
        while highest < _LARGEST and self._fits(**{outer: 1, inner: highest}):
            highest *= 2
        value = 0
        while highest >= least:
            value += 1
            while highest >= least and not self._fits(**{outer: value, inner: highest}):
                highest -= 1
            for choice in (highest, highest + 1):
                if (counted := self._at(**{outer: value, inner: choice})) is not None:
                    yield self._match(counted, abs(math.log(value / choice / ladder)))


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

    def model(self, arch: str, rung: int, seq_len: int) -> Model:
        """Return the model that the study trains.

        Raises:
            UserError: an impossible shape, or none within the tolerance of the reference.
        """
        key = (arch, rung, seq_len)
        if key not in self._planned:
            matched = self._study.match != "ladder"
            self._planned[key] = self._match(*key) if matched else self.on_ladder(*key)
        return self._planned[key]

    def on_ladder(self, arch: str, rung: int, seq_len: int) -> Model:
        """Return the model of the recipe's ladder, with the overrides of a variant.

        Raises:
            UserError: an impossible shape.
        """
        key = (arch, rung, seq_len)
        if key not in self._on_ladder:
            self._on_ladder[key] = self._resolve(arch, rung, seq_len)
        return self._on_ladder[key]

    def before_matching(self, arch: str, rung: int, seq_len: int) -> Model:
        """Return what stands for an arch where no matched shape is needed: its reference, if any.

        Raises:
            UserError: an impossible shape.
        """
        if self._study.match == "ladder":
            return self.on_ladder(arch, rung, seq_len)
        return self.on_ladder(self.reference(rung, seq_len), rung, seq_len)

    def flops_per_token(self, model: Model) -> int:
        """Return training FLOPs per token under the study's convention."""
        return self._convention(model.ledger)

    def reference(self, rung: int, seq_len: int) -> str:
        """Return the arch that others are matched to: the named one, the first dense one, or mlp.

        An arch is dense if it has no router.
        """
        if self._study.match_reference is not None:
            return self._study.match_reference
        for arch in self._study.archs:
            if self.on_ladder(arch, rung, seq_len).ledger.flops("router") == 0:
                return arch
        return _FALLBACK_REFERENCE

    def match_residual(self, ledger: Ledger, rung: int, seq_len: int) -> float | None:
        """Return the signed relative difference of a model to the reference of its rung.

        Returns None where the study compares the recipe's own ladder.
        """
        if self._study.match == "ladder":
            return None
        return relative_difference(self._counted(ledger), self._target(rung, seq_len))

    def _target(self, rung: int, seq_len: int) -> int:
        reference = self.on_ladder(self.reference(rung, seq_len), rung, seq_len)
        return self._counted(reference.ledger)

    def _counted(self, ledger: Ledger) -> int:
        """Return what the study matches."""
        if self._study.match == "active_params":
            return ledger.num_active_params
        return self._convention(ledger)

    def _match(self, arch: str, rung: int, seq_len: int) -> Model:
        ladder = self.on_ladder(arch, rung, seq_len)
        if arch == self.reference(rung, seq_len):
            return dataclasses.replace(ladder, match_residual=0.0)
        _, overrides = self._study.family_and_overrides(arch)

        def count(config: Any) -> int:
            return self._counted(self._ledger(ladder.family, config, ladder.shape, seq_len))

        free_dimension = get_spec(ladder.family).free_dimension
        tolerance = self._study.tolerance
        target = self._target(rung, seq_len)
        match = solve(ladder.config, free_dimension, overrides, count, target, tolerance)
        if abs(match.residual) > tolerance:
            raise self._too_far(arch, rung, seq_len, free_dimension, match)
        return dataclasses.replace(
            ladder,
            config=match.config,
            ledger=self._ledger(ladder.family, match.config, ladder.shape, seq_len),
            match_residual=match.residual,
        )

    def _resolve(self, arch: str, rung: int, seq_len: int) -> Model:
        family, overrides = self._study.family_and_overrides(arch)
        shape = Shape(**(dataclasses.asdict(self._recipe.shape(rung)) | _of_shape(arch, overrides)))
        ladder = dataclasses.asdict(get_spec(family).ladder(self._recipe, rung))
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
        self, arch: str, rung: int, seq_len: int, free_dimension: tuple[str, ...], match: Match
    ) -> UserError:
        shape = ", ".join(f"{name} {getattr(match.config, name)}" for name in free_dimension)
        return UserError(
            "tolerance",
            self._study.tolerance,
            f"{abs(match.residual):.4g} or more for {arch} at size {rung}, whose closest shape "
            f"({shape or 'nothing is free'}) is {match.residual:+.2%} from the "
            f"{_WHAT[self._study.match]} of {self.reference(rung, seq_len)}",
            f"raise tolerance, leave {arch} size {rung} out, or make {arch} a variant with other "
            "fields",
        )


def _of_shape(arch: str, overrides: Mapping[str, int | str]) -> dict[str, Any]:
    """Return the overrides that change the model around the layer."""
    chosen = {name: value for name, value in overrides.items() if name in SHAPE_FIELDS}
    for name, value in chosen.items():
        if type(value) is not int:
            raise UserError(f"{arch}.{name}", value, "a whole number", "correct the variant")
    return chosen
