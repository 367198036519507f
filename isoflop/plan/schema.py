"""The published schema of plan.json: what a reader in another language may rely on.

`plan.schema.json` beside this file is made from the models here, by `python -m isoflop.plan.schema`
(a test compares the two). `isoflop` itself reads a plan by recomputing it, which is stricter.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from isoflop.files import dump_json
from isoflop.plan.artefact import PLAN_SCHEMA_VERSION
from isoflop.study import Study

SCHEMA_FILE = Path(__file__).with_name("plan.schema.json")
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DROPPED = ("title", "default")

_Count = Annotated[StrictInt, Field(ge=1)]
_Digest = Annotated[StrictStr, Field(pattern="^[0-9a-f]{64}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Spec(_Closed):
    """The identity of a run: all of it is hashed into the run id."""

    family: StrictStr
    config: dict[str, StrictInt | StrictStr] = Field(
        description="the family's resolved configuration, every field"
    )
    d_model: _Count
    n_layers: _Count
    n_heads: _Count
    vocab_size: _Count
    seq_len: _Count = Field(description="tokens per sequence")
    batch_size: _Count = Field(description="sequences per step, all devices together")
    steps: _Count
    data_id: StrictStr
    tokenizer_hash: StrictStr
    seed: Annotated[StrictInt, Field(ge=0)]
    recipe: StrictStr = Field(description="a recipe's name, which ends in its version")
    precision: StrictStr
    document_mask: StrictBool = Field(
        default=False, description="a token attends to its own document only; left out if not"
    )


class _FlopsPerToken(_Closed):
    """Forward FLOPs per token by component; exact integers."""

    attn_proj: Annotated[StrictInt, Field(ge=0)]
    attn_scores: Annotated[StrictInt, Field(ge=0)]
    experts: Annotated[StrictInt, Field(ge=0)]
    router: Annotated[StrictInt, Field(ge=0)]
    head: Annotated[StrictInt, Field(ge=0)]


class _Run(_Closed):
    """One planned run. Everything but spec and its place in the plan follows from these."""

    run_id: _Digest = Field(description="sha256 of the canonical JSON of spec")
    arch: StrictStr = Field(description="the label that is compared")
    size: _Count = Field(description="rung of the recipe's ladder")
    budget_flops: _Count = Field(description="training FLOPs the run may spend")
    flops: _Count = Field(description="training FLOPs it spends, under the study's convention")
    residual: float = Field(ge=0, lt=1, description="share of the budget left unspent")
    match_residual: float | None = Field(
        description="signed relative difference to the matched reference; null: not matched"
    )
    n_params: _Count
    n_active: _Count
    n_nonembed: Annotated[StrictInt, Field(ge=0)]
    n_tokens: _Count
    epochs: float | None = Field(description="passes over the training data; null: not known")
    flops_per_token: _FlopsPerToken
    warnings: list[StrictStr]
    spec: _Spec


class _Expected(_Closed):
    """Where the prior expects an optimum: an estimate, frozen when it was made."""

    budget_flops: _Count
    arch: StrictStr
    size: float = Field(description="in rungs, interpolated")


class PlanFile(_Closed):
    """A plan: the resolved study and its runs in the order budget, arch, size, seed."""

    schema_version: Literal[2] = Field(description="raised when the meaning of a field changes")
    study: Study
    num_train_tokens: _Count | None = Field(description="of the training data; null: not known")
    family_digests: dict[str, _Digest] = Field(
        description="sha256 over the source of each family from outside the package"
    )
    expected: list[_Expected] = Field(
        description="for `auto` sizes, in the order budget, arch; else empty"
    )
    left_out: list[StrictStr] = Field(
        description="rungs that the recipe's rule offered and the planner dropped, with the reason"
    )
    runs: list[_Run]


def plan_schema() -> dict[str, Any]:
    """Return the JSON schema of plan.json (draft 2020-12); every field is always written."""
    schema = _closed(PlanFile.model_json_schema())
    # Placement alone is frozen only as far as the study gives it.
    schema["$defs"]["PlacementTable"]["required"] = ["cluster"]
    # Later fields are left out of plans that do without them.
    for name, left_out in (
        ("Spec", ("document_mask",)),
        ("Study", ("document_mask", "epochs", "learning_rates", "more_seeds")),
    ):
        for field in left_out:
            schema["$defs"][name]["required"].remove(field)
    schema["title"] = f"isoflop plan, version {PLAN_SCHEMA_VERSION}"
    return {"$schema": DIALECT, **schema}


def _closed(node: Any) -> Any:
    """Require every property, and drops defaults and the private names of the models."""
    if isinstance(node, list):
        return [_closed(inner) for inner in node]
    if isinstance(node, str):
        return node.replace("#/$defs/_", "#/$defs/")
    if not isinstance(node, dict):
        return node
    kept = {name: _closed(inner) for name, inner in node.items() if name not in _DROPPED}
    if "properties" in node:
        kept["properties"] = {name: _closed(inner) for name, inner in node["properties"].items()}
        kept["required"] = list(node["properties"])
    if "$defs" in node:
        kept["$defs"] = {name.lstrip("_"): _closed(inner) for name, inner in node["$defs"].items()}
    return kept


if __name__ == "__main__":
    sys.stdout.write(dump_json(plan_schema()))
