"""How often near patterns share a label, against what the token alone and chance would give.

Neighbours are always sought in other documents. Three pools of candidates:

- ``any``: all tokens there. Two of the same token have much the same gates, so that anything that
  depends on the token is shared: the naive figure.
- ``different_token``: tokens unlike the query's, so that a label is not shared by being that token.
- ``same_token``: only the query's token elsewhere, so that what is shared depends on the context.

Letters: P patterns, K neighbours, D documents, B draws of documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Floats
from isoflop.interpret.geometry.neighbours import Allowed, nearest
from isoflop.interpret.geometry.patterns import Ints, Matrix, TokenRows
from isoflop.interpret.interval import Interval, interval_of

POOLS = ("any", "different_token", "same_token")


def pool_of(tokens: TokenRows, pool: str) -> Allowed:
    """Return which patterns may be neighbours of a block of patterns."""
    assert pool in POOLS

    def allowed(block: slice) -> NDArray[np.bool_]:
        elsewhere = tokens.document_P[block, None] != tokens.document_P
        if pool == "any":
            return elsewhere
        same = tokens.input_P[block, None] == tokens.input_P
        return elsewhere & (same if pool == "same_token" else ~same)

    return allowed


def neighbours_by_pool(
    matrix_PM: Matrix, tokens: TokenRows, *, num_neighbours: int, seed: int
) -> dict[str, Ints]:
    """Return by pool: each pattern's nearest neighbours [P, K]; -1 where there are fewer."""
    pools = {pool: pool_of(tokens, pool) for pool in POOLS}
    return nearest(matrix_PM, pools, num_neighbours=num_neighbours, seed=seed)


def chance(tokens: TokenRows, label_P: Ints, pool: str) -> Floats:
    """Return what a candidate drawn evenly from the pool gives, exactly [P]; NaN where it is empty.

    In the pool ``same_token`` it is what the token alone tells of the label.
    """
    document, token = tokens.document_P, tokens.input_P
    num_with = _elsewhere(document, label_P)
    num_all = _elsewhere(document)
    if pool != "any":
        of_token_with, of_token = _elsewhere(document, label_P, token), _elsewhere(document, token)
        if pool == "same_token":
            num_with, num_all = of_token_with, of_token
        else:
            num_with, num_all = num_with - of_token_with, num_all - of_token
    share_P = np.full(len(label_P), np.nan)
    np.divide(num_with, num_all, out=share_P, where=num_all > 0)
    return share_P


def _elsewhere(document_P: Ints, *keys: Ints) -> Ints:
    """Return how many rows of other documents have the keys of each row."""
    return _alike(*keys, size=len(document_P)) - _alike(document_P, *keys, size=len(document_P))


def _alike(*keys: Ints, size: int) -> Ints:
    if not keys:
        return np.full(size, size, dtype=np.int64)
    _, group, count = np.unique(
        np.stack(keys, axis=1), axis=0, return_inverse=True, return_counts=True
    )
    return count[group.ravel()]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Estimate:
    """A mean over tokens and what it is in each draw of documents."""

    value: float | None
    """None where no token has a figure."""
    draws_B: Floats
    num_tokens: int
    """Tokens that have a figure."""

    @property
    def interval(self) -> Interval:
        """Percentiles of the draws."""
        return interval_of(self.value, self.draws_B)

    def minus(self, other: Estimate) -> Interval:
        """Return the difference, draw by draw."""
        if self.value is None or other.value is None:
            return Interval(value=None)
        return interval_of(self.value - other.value, self.draws_B - other.draws_B)


class Bootstrap:
    """Means over tokens, and the same with documents drawn with replacement.

    A document is drawn both for the tokens that ask and for those that are their neighbours: a pair
    weighs the product of how often its two documents were drawn (the pigeonhole bootstrap; Owen
    2007). With the neighbours taken as given, chance would be called a finding too often. Draws are
    the same for every figure, so that differences are paired.
    """

    def __init__(self, document_P: Ints, *, num_draws: int, seed: int) -> None:
        _, self._group_P = np.unique(document_P, return_inverse=True)
        self.num_documents = int(self._group_P.max()) + 1
        picked = np.random.default_rng(seed).integers(
            self.num_documents, size=(num_draws, self.num_documents)
        )
        self._weight_BD = np.stack(
            [np.bincount(row, minlength=self.num_documents) for row in picked]
        ).astype(np.float64)

    def purity(self, found_PK: Ints, label_P: Ints) -> Estimate:
        """Return the share of the neighbours (-1: none) that have the label of their token."""
        is_PK = found_PK >= 0
        count_P = is_PK.sum(axis=1)
        row, _ = np.nonzero(is_PK)
        other = found_PK[is_PK]
        # Each token that has neighbours weighs 1.
        weight = 1.0 / count_P[row]
        pair = self._group_P[row] * self.num_documents + self._group_P[other]
        all_DD = self._table(pair, weight)
        same_DD = self._table(pair, weight * (label_P[row] == label_P[other]))
        draws_B = _ratio(self._both(same_DD), self._both(all_DD))
        return _estimate(same_DD.sum(), all_DD.sum(), draws_B, int((count_P > 0).sum()))

    def mean(self, share_P: Floats) -> Estimate:
        """Return the mean of a figure of single tokens; NaN: none."""
        known = ~np.isnan(share_P)
        group = self._group_P[known]
        sum_D = np.bincount(group, share_P[known], minlength=self.num_documents)
        count_D = np.bincount(group, minlength=self.num_documents)
        draws_B = _ratio(self._weight_BD @ sum_D, self._weight_BD @ count_D)
        return _estimate(sum_D.sum(), count_D.sum(), draws_B, int(known.sum()))

    def _table(self, pair: Ints, weight: Floats) -> Floats:
        size = self.num_documents
        table = np.bincount(pair, weight, minlength=size * size)
        return np.asarray(table, dtype=np.float64).reshape(size, size)

    def _both(self, table_DD: Floats) -> Floats:
        """Return the sum over pairs of documents, weighted by both, in each draw."""
        sum_B: Floats = ((self._weight_BD @ table_DD) * self._weight_BD).sum(axis=1)
        return sum_B


def _estimate(total: float, count: float, draws_B: Floats, num_tokens: int) -> Estimate:
    value = float(total) / float(count) if num_tokens else None
    return Estimate(value=value, draws_B=draws_B, num_tokens=num_tokens)


def _ratio(sum_B: Floats, count_B: Floats) -> Floats:
    """Return the ratio; NaN where a draw has nothing to count."""
    ratio_B = np.full(len(sum_B), np.nan)
    np.divide(sum_B, count_B, out=ratio_B, where=count_B > 0)
    return ratio_B


def as_labels(values: Any) -> Ints:
    """Return a number for each different value."""
    return np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64)
