"""The claims table: what the frozen rules of the CPU studies say of the paper's claims.

    python experiments/claims.py            # writes the table into results/cpu_reference/README.md
    python experiments/claims.py --check    # exit code 1 where that would change anything

Numbers and verdicts come from `hypotheses.parquet` of the studies (`isoflop report`) and from
`claims.parquet` (`python experiments/interpret_claims.py`); this script only sets them in a table,
beside the verdicts of release 0.1.0 (`results/verdicts_0.1.0.json`), which judged the same runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from isoflop.analysis.hypotheses import HYPOTHESES
from isoflop.files import write_text_atomic
from isoflop.tables import read_table

RESULTS = Path(__file__).resolve().parents[1] / "results"
PAGE = RESULTS / "cpu_reference" / "README.md"
BEFORE = "verdicts_0.1.0.json"
"""By study and rule, what 0.1.0 said of the same runs; rules read from models are not in it."""
BEGIN, END = "<!-- begin: python experiments/claims.py -->", "<!-- end -->"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A claim of the paper, and the studies whose rules of its name decide it."""

    id: str
    text: str
    studies: tuple[str, ...]
    from_models: bool = False
    """Whether it was read from trained models (`claims.parquet`), not from a fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one rule says."""

    study: str
    rule: str
    measured: str
    verdict: str
    before: str
    """The verdict of 0.1.0."""


CLAIMS = (
    Claim(
        id="C1",
        text="at equal training FLOPs sgatlin beats mlp, swiglu and a coarse mixture of experts",
        studies=("cpu_reference",),
    ),
    Claim(
        id="C1b",
        text="it still does when the FLOPs of the un-embedding are counted",
        studies=("cpu_head",),
    ),
    Claim(
        id="C1c",
        text="it still does at equal FLOPs per token, where no family reads more tokens",
        studies=("cpu_matched",),
    ),
    Claim(
        id="C2",
        text="removing the nonlinearity is the key: no activation is better, before or after the "
        "gate, with raw or softmax gates",
        studies=("cpu_ablations",),
    ),
    Claim(
        id="C3",
        text="the lead holds over all budgets, and grows with compute",
        studies=("cpu_reference",),
    ),
    Claim(
        id="C3b",
        text="sgatlin beats PEER, and each step from one to the other helps",
        studies=("cpu_reference", "cpu_ablations"),
    ),
    Claim(
        id="C4",
        text="more experts at a fixed budget lower the loss",
        studies=("cpu_experts",),
    ),
    Claim(
        id="C5",
        text="less than 0.1 % of a feed-forward layer's parameters are active",
        studies=("cpu_reference",),
        from_models=True,
    ),
    Claim(
        id="C6",
        text="given its gates a layer is a matrix: y = W(gates) x, and gates add up",
        studies=("cpu_reference", "facts_tiny"),
        from_models=True,
    ),
    Claim(
        id="C7",
        text="gate vectors form semantic clusters, beyond the identity of the token",
        studies=("cpu_reference",),
        from_models=True,
    ),
    Claim(
        id="C8",
        text="the gates at a noun carry the fact about it, most in the second layer",
        studies=("facts_tiny",),
        from_models=True,
    ),
    Claim(
        id="C9",
        text="the lead in FLOPs is a lead by the clock of this CPU too",
        studies=("cpu_reference",),
    ),
    Claim(
        id="C10",
        text="experts do not collapse without a balancing loss",
        studies=("cpu_reference", "facts_tiny"),
        from_models=True,
    ),
)


def findings(claim: Claim, results: Path) -> list[Finding]:
    """Return the verdicts on rules whose name is the claim's, or begins with it and a dash."""
    read = _from_models if claim.from_models else _from_fits
    return [
        finding
        for study in claim.studies
        for name, finding in read(study, results)
        if name.split("-")[0] == claim.id
    ]


def _from_fits(study: str, results: Path) -> Iterator[tuple[str, Finding]]:
    before = json.loads((results / BEFORE).read_text(encoding="utf-8"))[study]
    for row in read_table(results / study / "hypotheses.parquet", HYPOTHESES):
        yield (
            row["id"],
            Finding(
                study=study,
                rule=row["decide"],
                measured=row["detail"],
                verdict=row["verdict"],
                before=before[row["id"]],
            ),
        )


def _from_models(study: str, results: Path) -> Iterator[tuple[str, Finding]]:
    words: dict[str, dict[str, str]] = {}
    for row in pq.read_table(results / study / "claims.parquet").to_pylist():
        if row["quantity"] in ("rule", "measured", "verdict"):
            words.setdefault(row["claim"], {})[row["quantity"]] = row["note"]
    for name, finding in words.items():
        yield name, Finding(study=study, **finding, before=finding["verdict"])


def together(verdicts: Sequence[str]) -> str:
    """Return the verdict on a claim: supported if every rule is, not supported if one is not."""
    if "not supported" in verdicts:
        return "not supported"
    return "undecided" if "undecided" in verdicts or not verdicts else "supported"


def page_block(results: Path) -> str:
    """Return the summary and a table for each claim, in Markdown."""
    by_claim = {claim: findings(claim, results) for claim in CLAIMS}
    summary = [
        "| claim | | verdict | rules supported / not / undecided | by 0.1.0 |",
        "|---|---|---|---|---|",
    ]
    sections = []
    for claim, found in by_claim.items():
        verdicts = [finding.verdict for finding in found]
        counts = " / ".join(
            str(verdicts.count(word)) for word in ("supported", "not supported", "undecided")
        )
        before = together([finding.before for finding in found])
        verdict = f"**{together(verdicts)}**"
        summary.append(f"| {claim.id} | {claim.text} | {verdict} | {counts} | {before} |")
        sections.append(_section(claim, found, together(verdicts)))
    return "\n".join([*summary, "", *sections])


def _section(claim: Claim, found: Sequence[Finding], verdict: str) -> str:
    lines = [f"### {claim.id}: {claim.text}", "", f"**{verdict.capitalize()}.**", ""]
    for study in claim.studies:
        lines += [f"`{_command(claim, study)}`", ""]
        lines += ["| rule, frozen before the runs | measured | verdict | by 0.1.0 |"]
        lines += ["|---|---|---|---|"]
        lines += [
            f"| {f.rule} | {f.measured} | {f.verdict} | {f.before} |"
            for f in found
            if f.study == study
        ]
        lines.append("")
    return "\n".join(lines)


def _command(claim: Claim, study: str) -> str:
    if claim.from_models:
        # Those that a study's models are asked about, in one go.
        asked = [one.id for one in CLAIMS if one.from_models and study in one.studies]
        return f"python experiments/interpret_claims.py results/{study} --claims {','.join(asked)}"
    return f"isoflop report results/{study}"


def with_block(page: str, block: str) -> str:
    """Return the page with the text between its two marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{block}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or say whether it is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args(arguments).check
    old = PAGE.read_text(encoding="utf-8")
    new = with_block(old, page_block(RESULTS))
    if check:
        return int(new != old)
    write_text_atomic(PAGE, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
