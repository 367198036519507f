"""The golden tables of the paper's official implementation, as rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"

FAMILY_OF_TYPE = {
    "mlp": "mlp",
    "swiglu": "swiglu",
    "moe": "moe",
    "peer": "peer",
    "sparsely_gated_linear": "sgatlin",
}


def rows(name: str) -> list[dict[str, str]]:
    with (GOLDEN / name).open(newline="") as file:
        return list(csv.DictReader(file))


def json_value(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())
