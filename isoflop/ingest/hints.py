"""What to type where a table's names leave something open: losses, budgets, archs, units.

A hint is a sentence beside a mapping (`isoflop.ingest.suggest`) or what was read by it
(`isoflop.ingest.table`); it decides nothing.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from isoflop.errors import UserError
from isoflop.ingest.frames import read_numbers
from isoflop.ingest.names import pattern_of
from isoflop.numbers import read_number
from isoflop.texts import printable

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.arrays import Floats

_LOSS_WORD = re.compile(r"loss|bpb|perplexity|crossentropy|entropyloss|ppl|nll|xent")
_NO_LOSS_WORD = re.compile(r"lower|upper|scale|std|stderr|error|grad|aux|balanc|router|zloss")
_FLOPS_IN_NAME = re.compile(r"\d+(?:\.\d+)?e\+?\d\d(?!\d)", re.IGNORECASE)
_LEAST_BUDGETS = 2
_MAX_NAMED = 4
_MAX_NAMES = 5_000
# No language model has less per token, nor starts with more: ln of 2e6 words is 14.5.
_LEAST_NATS, _MOST_NATS = 1.2, 15.0

# Steps are whole numbers, so that runs miss their budgets by less.
_NEAR_FLOPS = 1.05


def looks_like_loss(name: str) -> bool:
    """Return whether a column's name has the word of a loss, and none of what is beside one."""
    plain = re.sub(r"[^a-z]+", "", name.lower())
    return bool(_LOSS_WORD.search(plain)) and not _NO_LOSS_WORD.search(plain)


def named(columns: Sequence[str]) -> str:
    """Return the first few names of columns, in a line."""
    more = len(columns) - _MAX_NAMED
    return ", ".join(columns[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def unit_hint(column: str, losses: Floats) -> str | None:
    """Return what to say of losses that are taken for nats per token and hardly can be that."""
    middle = _middle(losses)
    if math.isnan(middle) or _LEAST_NATS <= middle <= _MOST_NATS:
        return None
    units = "perplexity" if middle > _MOST_NATS else "bits_per_byte, bits_per_token or a name"
    size = "high" if middle > _MOST_NATS else "low"
    return (
        f"loss: {column} is taken for nats per token, for which {middle:.3g} (median) is {size}: "
        f"--loss-unit {units}?"
    )


def budget_hint(column: str, names: pd.Series) -> str | None:
    """Return the pattern by which the names of runs tell their budgets, None where none does."""
    texts = [str(name) for name in names.dropna().unique()[:_MAX_NAMES]]
    found = [_FLOPS_IN_NAME.search(text) for text in texts]
    matches = [match for match in found if match is not None]
    budgets = {read_number(match[0]) for match in matches}
    if len(matches) < len(texts) or len(budgets) < _LEAST_BUDGETS:
        return None
    first = matches[0].string
    before, after = first[: matches[0].start()], first[matches[0].end() :]
    if any(not text.startswith(before) for text in texts):
        before = "{arch}" + before[-1:]
    pattern = before + "{budget_flops}" + (f"{after[0]}{{_}}" if after else "")
    try:
        parsed = pattern_of(pattern, "--parse")
    except UserError:
        return None
    if not all(parsed.match(text, _may_be) for text in texts):
        return None
    typed = shlex.quote(printable(f"{column}={pattern}", ""))
    return f"budget_flops: may stand in {column}: --parse {typed}"


def _may_be(ours: str, text: str) -> bool:
    return ours == "arch" or _FLOPS_IN_NAME.fullmatch(text) is not None


def arch_hint(columns: Collection[str]) -> str | None:
    """Return what to say of columns that may tell archs apart where none is taken."""
    if not columns:
        return None
    names = named(list(columns))
    return f"arch: all runs are taken for one; what may tell archs apart: {names} (--arch COLUMN)"


def sizes_hint(numbers: Mapping[str, Floats], frame: pd.DataFrame, budget: str) -> str | None:
    """Return what to say of parameters by which 6 N D is not the budget; None where it is.

    Args:
        numbers: ``n_params``, ``n_tokens`` and ``budget_flops`` of each run.
        frame: of theirs, a row a run; the first count of parameters by which it is, is named.
        budget: their column of budgets.
    """
    import numpy as np

    others = [name for name in frame.columns if "param" in str(name).lower()]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        flops_a_size = 6 * numbers["n_tokens"] / numbers["budget_flops"]
        ratio = _middle(numbers["n_params"] * flops_a_size)
        if math.isnan(ratio) or _is_near(ratio):
            return None
        ratios = {name: _middle(read_numbers(frame[name]).values * flops_a_size) for name in others}
    fitting = [shlex.quote(f"n_params={name}") for name in others if _is_near(ratios[name])]
    sizes = f"--map {fitting[0]}, by which it is; or " if fitting else ""
    spent = f"--map {shlex.quote(f'flops={budget}')}, where budgets were kept"
    return f"6 · n_params · n_tokens is {ratio:.3g} times budget_flops (median): {sizes}{spent}?"


def _middle(values: Floats) -> float:
    import numpy as np

    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _is_near(ratio: float) -> bool:
    return 1 / _NEAR_FLOPS < ratio < _NEAR_FLOPS
