"""One window of held-out text, looked at closely: are its layers linear, what makes a logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.data.tokenizers import PAD_ID
from isoflop.data.windows import shift_right
from isoflop.errors import UserError
from isoflop.interpret.attribution import ATTRIBUTION, attribution_rows, trace
from isoflop.interpret.linear import LINEARITY, Linearity, linearity
from isoflop.interpret.load import Subject
from isoflop.tables import write_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What was found and where it was written."""

    checks: Sequence[Linearity]
    position: int
    before: str
    """What the model has read up to that position; the begin token has no text."""
    token: int
    text: str
    """Of the token."""
    logit: float
    rows: Sequence[dict[str, Any]]
    """Of isoflop.interpret.attribution.ATTRIBUTION."""
    files: Sequence[Path]


def look_at(
    subject: Subject, out: Path, *, window: int, position: int | None, token: int | None
) -> Look:
    """Write linearity.parquet of a window and attribution.parquet of one logit to ``out``.

    Args:
        subject: a model of the family sgatlin or peer.
        out: folder for the tables.
        window: which of the held-out windows.
        position: whose logit; None: that of the window's last token.
        token: whose logit; None: that of the token to predict.

    Raises:
        UserError: another family; there is no such window, position or token.
    """
    assert subject.heldout is not None
    _check("--window", window, len(subject.heldout.tokens))
    targets_T = subject.heldout.tokens[window]
    length = int((targets_T != PAD_ID).sum())
    position = length - 1 if position is None else position
    _check("--position", position, length)
    token = int(targets_T[position]) if token is None else token
    _check("--token", token, subject.spec.vocab_size)
    inputs = shift_right(targets_T[None, :length], subject.heldout.begin_id)
    inputs_BT = torch.from_numpy(inputs.astype(np.int64))
    traced = trace(subject.model, inputs_BT)
    checks = linearity(subject.model, traced.x, traced.y, traced.idx, traced.score)
    rows = attribution_rows(subject.model, traced, inputs_BT, position, token)
    paths = (out / f"{LINEARITY.table}.parquet", out / f"{ATTRIBUTION.table}.parquet")
    write_table(paths[0], [asdict(check) for check in checks], LINEARITY)
    write_table(paths[1], rows, ATTRIBUTION)
    return Look(
        checks=checks,
        position=position,
        before=_text(subject, targets_T[:position]),
        token=token,
        text=_text(subject, [token]),
        logit=float(traced.logits_TV[position, token]),
        rows=rows,
        files=paths,
    )


def _text(subject: Subject, tokens: Any) -> str:
    return subject.tokenizer.decode(np.asarray(tokens, dtype=np.int64))


def _check(name: str, value: int, count: int) -> None:
    if not 0 <= value < count:
        raise UserError(name, value, f"from 0 to {count - 1}", "correct it")
