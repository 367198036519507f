"""What a run is. Everything in a RunSpec is hashed into the run id; nothing else ever is.

Where a run executes (paths, devices, micro-batch, host, git state), what it is called (study,
arch label) and why it was planned (budget, convention) are not identity: two budgets that resolve
to the same training share one run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from isoflop.files import sha256_json
from isoflop.validate import CLOSED, Count, Digest, Ge, validated

SHOWN_DIGITS = 12

# Fields that a family's configuration gained after runs had been planned, each with the value that
# means what the family did before. At that value a field is left out of the identity, so that the
# ids of earlier runs stay; at any other it is hashed like the rest. Entries are never changed or
# removed: the ids of later runs rest on them.
LATER_FIELDS: Mapping[str, Mapping[str, int | str]] = {
    "sgatlin": {"gate": "raw", "tables": "separate"},
}

# The same for fields of the spec itself.
LATER_SPEC_FIELDS: Mapping[str, bool] = {"document_mask": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """The identity of one training run."""

    __pydantic_config__: ClassVar = CLOSED

    family: str
    config: Mapping[str, int | str]
    """The family's resolved configuration: every field, but those of LATER_FIELDS only where they
    differ from what they were before."""
    d_model: Count
    n_layers: Count
    n_heads: Count
    vocab_size: Count
    seq_len: Count
    """Tokens per sequence."""
    batch_size: Count
    """Sequences per optimizer step, all devices together."""
    steps: Count
    data_id: str
    tokenizer_hash: str
    seed: Annotated[int, Ge(0)]
    recipe: str
    """Name of the recipe, which ends in its version."""
    precision: str
    document_mask: bool = False
    """Whether a token attends to its own document only. FLOPs are counted as without it."""

    def __post_init__(self) -> None:
        later = LATER_FIELDS.get(self.family, {})
        kept = {key: value for key, value in self.config.items() if later.get(key) != value}
        object.__setattr__(self, "config", kept)

    @property
    def n_tokens(self) -> int:
        """Training tokens of the whole run."""
        return self.steps * self.batch_size * self.seq_len

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, in the order of the fields."""
        values: dict[str, Any] = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(RunSpec)
        }
        values["config"] = dict(self.config)
        return {
            name: value for name, value in values.items() if LATER_SPEC_FIELDS.get(name) != value
        }

    @staticmethod
    def from_json(values: Any) -> RunSpec:
        """Return the inverse of :meth:`to_json`.

        Raises:
            UserError: a field is missing, unknown or of the wrong type.
        """
        do = "restore the file"
        return validated(RunSpec, values, what="spec", do=do, do_missing=do, do_unknown=do)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerSpec:
    """The identity of one training run by a command of the user's own."""

    __pydantic_config__: ClassVar = CLOSED

    command: tuple[str, ...]
    """Program and arguments; only placeholders of where it runs are left in them."""
    env: Mapping[str, str]
    """Variables that the study sets for the command."""
    code: Digest
    """Sha256 over the files of the code folder; see isoflop.code_folder."""
    rung: Mapping[str, int | float | str]
    """The ladder's values."""
    seq_len: Count
    """Tokens per sequence."""
    batch_tokens: Count
    """Tokens per optimizer step, all devices together."""
    steps: Count
    data: str
    """The study's label of the data."""
    seed: Annotated[int, Ge(0)]

    @property
    def batch_size(self) -> int:
        """Sequences per optimizer step."""
        return self.batch_tokens // self.seq_len

    @property
    def n_tokens(self) -> int:
        """Training tokens of the whole run."""
        return self.steps * self.batch_tokens

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, in the order of the fields."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(TrainerSpec)}
        tables = {name: dict(values[name]) for name in ("env", "rung")}
        return values | tables | {"command": list(self.command)}


AnySpec = RunSpec | TrainerSpec


def spec_from_json(values: Any) -> AnySpec:
    """Return the inverse of the specs' to_json: of a trainer of one's own where it has a command.

    Raises:
        UserError: a field is missing, unknown or of the wrong type.
    """
    if not isinstance(values, dict) or "command" not in values:
        return RunSpec.from_json(values)
    do = "restore the file"
    return validated(TrainerSpec, values, what="spec", do=do, do_missing=do, do_unknown=do)


def run_id(spec: AnySpec) -> str:
    """Return the run's id: 64 hex digits of sha256 over the canonical JSON of the spec."""
    return sha256_json(spec.to_json())


def shown_id(full_id: str) -> str:
    """Return the digits that tables and folders show people."""
    return full_id[:SHOWN_DIGITS]
