"""Small studies for tests."""

from __future__ import annotations

from isoflop.study import PAPER_ARCHS, Study


def micro(**changes: object) -> Study:
    values: dict[str, object] = {
        "name": "micro",
        "budgets": (10**10,),
        "archs": PAPER_ARCHS,
        "sizes": (1, 2),
        "recipe": "micro-v1",
        "seq_len": 32,
        "batch_size": 4,
    }
    return Study(**(values | changes))  # type: ignore[arg-type]
