"""Predictions that were registered before any run of their budget: a study's predictions.json.

A registered prediction stays as it is: the file is only added to, and a budget only once.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from isoflop import __version__
from isoflop.analysis.points import Selection
from isoflop.analysis.predict import REGISTERED, Prediction
from isoflop.analysis.result import Fits
from isoflop.errors import UserError, shown
from isoflop.files import read_json, refuse_links, sha256_json, write_json_atomic
from isoflop.numbers import format_flops
from isoflop.validate import CLOSED, Count, Digest, Ge, Le, UnixTime, in_file, validated

FILE = "predictions.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """The predictions for one budget, with what they were made from."""

    __pydantic_config__: ClassVar = CLOSED

    budget_flops: Annotated[int, Ge(1), Le(10**300)]
    registered_at: UnixTime
    """Seconds since 1970, UTC."""
    isoflop: str
    """Version of the package."""
    reference: str | None
    """What multipliers are over."""
    num_points: Count
    """Runs that the predictions were made from."""
    points_sha256: Digest
    """Over these runs: arch, budget, parameters, tokens, seed and loss, in order."""
    predictions: tuple[Prediction, ...]

    def __post_init__(self) -> None:
        """Refuse rows of another budget and numbers that are none: a file may come from anybody."""
        do = "restore the file"
        if not self.predictions:
            raise UserError("predictions", [], "one or more", do)
        for row in self.predictions:
            if row.budget_flops != float(self.budget_flops):
                raise UserError("predictions.budget_flops", row.budget_flops, "the entry's", do)
            if row.quantity not in REGISTERED:
                allowed = f"one of {', '.join(REGISTERED)}"
                raise UserError("predictions.quantity", row.quantity, allowed, do)
            for value in (row.value, row.pi_lo, row.pi_hi, row.ratio, row.confidence):
                if value is not None and not math.isfinite(value):
                    raise UserError("predictions.value", value, "a finite number", do)


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    __pydantic_config__: ClassVar = CLOSED

    schema_version: Literal[1]
    """Raised when the meaning of a field changes."""
    registered: tuple[Registered, ...]


def read_registered(folder: Path) -> tuple[Registered, ...]:
    """Return what was registered in a study's folder, in that order; nothing without a file.

    Raises:
        UserError: the file is a link, no JSON, or has other entries than those written here.
    """
    path = folder / FILE
    refuse_links(path)
    if not path.exists():
        return ()
    do = "restore the file"
    try:
        return validated(_File, read_json(path, "predictions"), do=do).registered
    except UserError as error:
        raise in_file(error, path, do) from None


def check_open(folder: Path, budget_flops: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to register for a budget that has a prediction, or of which a run has begun.

    Args:
        folder: the study's.
        budget_flops: training FLOPs of a run.
        rows: of runs.parquet.

    Raises:
        UserError: either of them, or the folder's file is damaged.
    """
    budget = shown(format_flops(budget_flops, digits=17))
    if any(entry.budget_flops == budget_flops for entry in read_registered(folder)):
        raise UserError(
            "--budget",
            budget,
            f"one without a prediction in {folder / FILE} (one that is registered stays)",
            "run its runs; `isoflop report` compares",
        )
    begun = [
        row
        for row in rows
        if row["budget_flops"] == float(budget_flops)
        and (row["status"] != "missing" or row.get("n_attempts"))
    ]
    if begun:
        num = "1 run has" if len(begun) == 1 else f"{len(begun)} runs have"
        allowed = f"one of which no run has begun ({num})"
        raise UserError("--budget", budget, allowed, "predict a budget that is not run yet")


def register(
    folder: Path, budget_flops: int, fits: Fits, predictions: Sequence[Prediction]
) -> Path:
    """Add the predictions for a budget to a study's folder; after `check_open`.

    Returns:
        The file, replaced atomically; what it held before is in it unchanged.

    Raises:
        UserError: the folder's file is damaged.
    """
    before = read_registered(folder)
    assert budget_flops not in {entry.budget_flops for entry in before}
    entry = Registered(
        budget_flops=budget_flops,
        registered_at=round(time.time(), 3),
        isoflop=__version__,
        reference=fits.reference,
        num_points=sum(map(len, fits.groups.values())),
        points_sha256=_digest(fits.selection),
        predictions=tuple(predictions),
    )
    made = _File(schema_version=1, registered=(*before, entry))
    path = folder / FILE
    write_json_atomic(path, dataclasses.asdict(made), make_folder=False)
    return path


def _digest(selection: Selection) -> str:
    points = [point for points in selection.groups.values() for point in points]
    # Canonical JSON has no floats, which have more than one spelling; repr gives the shortest.
    fields = ("budget_flops", "n_params", "n_tokens", "loss")
    return sha256_json(
        [[p.arch, p.seed, *(repr(getattr(p, field)) for field in fields)] for p in points]
    )
