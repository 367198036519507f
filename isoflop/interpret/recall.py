"""Facts recalled with another noun's gates: interventions, effects and figure, in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.interpret.effects import EFFECTS, INTERVENTIONS, effects
from isoflop.interpret.facts import Fact
from isoflop.interpret.figures_effects import save_effects
from isoflop.interpret.intervene import interventions, make_pairs, make_prompts
from isoflop.interpret.load import Subject
from isoflop.tables import write_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """What was found and where it was written."""

    rows: Sequence[dict[str, Any]]
    """Of isoflop.interpret.effects.EFFECTS."""
    files: Sequence[Path]


def write_recall(subject: Subject, facts: Sequence[Fact], out: Path, *, seed: int) -> Recall:
    """Patch the gates of every noun into other nouns' prompts; writes what it does to ``out``.

    Args:
        subject: a model of the family sgatlin or peer.
        facts: what it may have learned.
        out: folder for interventions.parquet, effects.parquet and the figure.
        seed: of the pairs, the random gates and the draws of nouns.

    Raises:
        UserError: the model's choices cannot be patched; no two facts make a pair.
    """
    prompts = make_prompts(facts, subject.tokenizer)
    rows = interventions(subject, make_pairs(prompts, seed=seed), seed=seed)
    found = effects(rows, seed=seed)
    tables = {INTERVENTIONS: rows, EFFECTS: found}
    for schema, written in tables.items():
        write_table(out / f"{schema.table}.parquet", written, schema)
    paths = [out / f"{schema.table}.parquet" for schema in tables]
    return Recall(rows=found, files=[*paths, *save_effects(found, out)])
