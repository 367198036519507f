"""Claims C5, C6, C7, C8 and C10 of the paper, measured on the runs of studies.

    python experiments/interpret_claims.py results/cpu_reference
    python experiments/interpret_claims.py results/facts_tiny --claims C6,C8,C10

Writes FOLDER/claims.parquet of each study: a row for each quantity, and three for each claim: its
rule, what was measured, the verdict. Looked at are the finished runs of sgatlin as published, with
any counts: for C6, C7 and C8 those whose weights were kept, for C10 all. Layers are counted from 0.
The same files give the same numbers.

The rules of C5, C6, C7 and C10 (interpret_rules.py) were written on 2026-11-24 before any run of
the reference study was looked at; those of C8 are frozen in the plan of facts_tiny.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from interpret_measures import (
    Row,
    active_shares,
    cluster_rows,
    effect_rows,
    fact_effects,
    is_layer_verdict,
    linearity_rows,
    row,
    seed_effect,
    shows_clusters,
    usage_rows,
)
from interpret_rules import (
    RULES,
    Finding,
    SeedEffect,
    judge_active,
    judge_c8,
    judge_c8_layer,
    judge_clusters,
    judge_linearity,
    judge_usage,
)

from isoflop.errors import UserError
from isoflop.families import config_from_mapping, get_spec
from isoflop.interpret.geometry.purity_tests import BEYOND
from isoflop.interpret.load import LoadedRun, open_run
from isoflop.interpret.usage import training_usage
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.weights import final_weights
from isoflop.plan.artefact import read_plan
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun
from isoflop.recipe import PAPER_V1
from isoflop.tables import Schema, write_table

FAMILY = "sgatlin"
CLAIMS_FILE = "claims.parquet"
CLAIMS = Schema(
    table="claims",
    columns=(
        ("claim", "string"),
        ("arch", "string"),
        ("run_id", "string"),
        ("budget_flops", "float64"),
        ("seed", "int64"),
        ("layer", "int64"),
        ("quantity", "string"),
        ("value", "float64"),
        ("ci_lo", "float64"),
        ("ci_hi", "float64"),
        ("n", "int64"),
        ("note", "string"),
    ),
)
"""Rows of the quantities "rule", "measured" and "verdict" have their words in ``note``."""

C8_ARCHS = {
    "C8": "sgatlin/two-layers",
    "C8-four-layers": "sgatlin/four-layers",
    "C8-few-experts": "sgatlin/few-experts",
    "C8-layer": "sgatlin/four-layers",
}
"""Of experiments/facts_tiny.toml: the models that each of its hypotheses is about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A study's folder and plan, and the models that were opened."""

    folder: Path
    plan: Plan
    loaded: dict[str, LoadedRun] = field(default_factory=dict)

    @property
    def runs(self) -> list[PlannedRun]:
        """Those of sgatlin as published."""
        return [run for run in self.plan.unique_runs if _is_published_design(run)]

    def with_weights(self) -> Iterator[tuple[PlannedRun, LoadedRun]]:
        """Yield the runs whose weights were kept, opened.

        Raises:
            UserError: there is none.
        """
        found = [run for run in self.runs if final_weights(self.of(run)) is not None]
        if not found:
            do = 'set keep_weights = "best" or "all" in the study and run it'
            allowed = f"a study with finished runs of {FAMILY} whose weights were kept"
            raise UserError("FOLDER", str(self.folder), allowed, do)
        for run in found:
            if run.run_id not in self.loaded:
                self.loaded[run.run_id] = open_run(self.folder, run.run_id)
            yield run, self.loaded[run.run_id]

    def of(self, run: PlannedRun) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.folder, run.run_id)


def _is_published_design(run: PlannedRun) -> bool:
    """Return whether every choice of the layer is sgatlin's own; its counts may be any."""
    if run.spec.family != FAMILY:
        return False
    config = config_from_mapping(FAMILY, run.spec.config)
    choices = (each for each in dataclasses.fields(config) if each.type == "str")
    return all(getattr(config, each.name) == each.default for each in choices)


def claim_c5(study: Study) -> list[Row]:
    """Measure the active share of a layer's parameters, at the published sizes and here."""
    published = {}
    for size in sorted(
        {s for table in PAPER_V1.published_sizes.values() for s in table["default"]}
    ):
        config = get_spec(FAMILY).ladder(PAPER_V1, size)
        published[size] = active_shares(FAMILY, config, PAPER_V1.shape(size).d_model)
    rows = [
        each
        for size, shares in published.items()
        for each in _share_rows("C5", shares, note=f"paper-v1, size {size}")
    ]
    for run in study.runs:
        config = config_from_mapping(FAMILY, run.spec.config)
        shares = active_shares(FAMILY, config, run.spec.d_model)
        rows += _share_rows("C5", shares, **_place(run))
    whole, alone = ({size: pair[i] for size, pair in published.items()} for i in range(2))
    return [*rows, *_finding_rows("C5", RULES["C5"], judge_active(whole, alone))]


def _share_rows(claim: str, shares: tuple[float, float], **place: Any) -> Iterator[Row]:
    for name, share in zip(("parameters, with the router", "experts"), shares, strict=True):
        yield _of_claim(claim, row(f"active share of {name}", share), **place)


def claim_c6(study: Study) -> list[Row]:
    """Measure whether layers are linear given their gates."""
    rows, worst, num_models = [], dict[str, float](), 0
    for run, loaded in study.with_weights():
        found = linearity_rows(loaded)
        for each in found:
            worst[each["quantity"]] = max(worst.get(each["quantity"], 0.0), each["value"])
        rows += _of_run("C6", run, found)
        num_models += 1
    return [*rows, *_finding_rows("C6", RULES["C6"], judge_linearity(worst, num_models))]


def claim_c7(study: Study) -> list[Row]:
    """Measure whether gates form clusters of meaning, beyond token identity."""
    rows, shown, verdicts = [], [], []
    for run, loaded in study.with_weights():
        found = cluster_rows(loaded)
        shown.append(shows_clusters(found))
        verdicts += [each["note"] for each in found if is_layer_verdict(each)]
        rows += _of_run("C7", run, found)
    finding = judge_clusters(shown, verdicts.count(BEYOND), len(verdicts))
    return [*rows, *_finding_rows("C7", RULES["C7"], finding)]


def claim_c8(study: Study) -> list[Row]:
    """Measure whether the gates at a noun are implicated in recalling a fact about it."""
    rows, by_arch = [], dict[str, list[SeedEffect]]()
    for run, loaded in study.with_weights():
        found = fact_effects(loaded)
        by_arch.setdefault(run.arch, []).append(seed_effect(found))
        rows += _of_run("C8", run, effect_rows(found))
    for hypothesis in study.plan.study.hypotheses:
        seeds = by_arch[C8_ARCHS[hypothesis.id]]
        judge = judge_c8_layer if hypothesis.id == "C8-layer" else judge_c8
        rows += _finding_rows(hypothesis.id, hypothesis.decide, judge(seeds))
    return rows


def claim_c10(study: Study) -> list[Row]:
    """Measure whether experts stay in use without a balancing loss."""
    rows, least = [], []
    for run in study.runs:
        logged = training_usage(study.of(run).path)
        if logged is None or study.of(run).result() is None:
            continue
        found = list(usage_rows(logged))
        least.append(
            min(each["value"] for each in found if each["quantity"].startswith("ever used"))
        )
        rows += _of_run("C10", run, found)
    if not least:
        do = "run the study first"
        raise UserError("FOLDER", str(study.folder), f"a study with finished runs of {FAMILY}", do)
    return [*rows, *_finding_rows("C10", RULES["C10"], judge_usage(least))]


MEASURES: dict[str, Callable[[Study], list[Row]]] = {
    "C5": claim_c5,
    "C6": claim_c6,
    "C7": claim_c7,
    "C8": claim_c8,
    "C10": claim_c10,
}
DEFAULT = ("C5", "C6", "C7", "C10")


def _of_run(claim: str, run: PlannedRun, found: Iterable[Row]) -> list[Row]:
    return [_of_claim(claim, each, **_place(run)) for each in found]


def _of_claim(claim: str, found: Row, **place: Any) -> Row:
    known = {name: value for name, value in found.items() if value is not None}
    return CLAIMS.row(**(known | place), claim=claim)


def _place(run: PlannedRun) -> dict[str, Any]:
    return {
        "arch": run.arch,
        "run_id": run.run_id,
        "budget_flops": float(run.budget_flops),
        "seed": run.spec.seed,
    }


def _finding_rows(claim: str, rule: str, found: Finding) -> list[Row]:
    words = {"rule": rule, "measured": found.measured, "verdict": found.verdict}
    return [CLAIMS.row(claim=claim, quantity=name, note=text) for name, text in words.items()]


def measure(folder: Path, claims: Sequence[str]) -> list[Row]:
    """Measure a study, write its claims.parquet and return the rows.

    Raises:
        UserError: there is no plan or nothing of it to look at, or C8 is asked of a study that is
            not facts_tiny's; nothing is written.
    """
    study = Study(folder=folder, plan=read_plan(folder))
    rules = {hypothesis.id for hypothesis in study.plan.study.hypotheses}
    if "C8" in claims and not set(C8_ARCHS) >= rules > set():
        raise UserError("--claims", "C8", "asked of experiments/facts_tiny.toml", "leave it out")
    rows = [each for claim in claims for each in MEASURES[claim](study)]
    write_table(folder / CLAIMS_FILE, rows, CLAIMS)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the studies that are named; return 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--claims",
        default=",".join(DEFAULT),
        help=f"of {', '.join(MEASURES)} (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        claims = _chosen(given.claims)
        for folder in given.folders:
            for each in measure(folder, claims):
                if each["quantity"] in ("measured", "verdict"):
                    print(f"{folder}: {each['claim']} {each['quantity']}: {each['note']}")
    except UserError as error:
        print(f"interpret_claims: {error}", file=sys.stderr)
        return 2
    return 0


def _chosen(text: str) -> list[str]:
    claims = text.split(",")
    if not set(claims) <= set(MEASURES):
        raise UserError("--claims", text, f"of {', '.join(MEASURES)}", "write C6,C7")
    return claims


if __name__ == "__main__":
    sys.exit(main())
