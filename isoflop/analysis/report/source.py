"""What a report is about: the input with its digest, the study around it, the versions used.

The checklist is of what a reader needs to reproduce a scaling law, filled in from the data. Its
four heads are those of the survey "(Mis)Fitting" (Li, Kudugunta and Zettlemoyer, 2025,
arXiv 2502.18969): form, training, data collection, fitting.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isoflop import __version__
from isoflop.analysis.bootstrap import seed_noise
from isoflop.analysis.laws import Budget
from isoflop.analysis.registered import Registered, read_registered
from isoflop.analysis.report.document import Section, label_column, table
from isoflop.analysis.result import Fits, excluded_note
from isoflop.code_files import commit_of
from isoflop.files import read_json, sha256_file
from isoflop.numbers import format_count, format_flops
from isoflop.recipe import get_recipe

_PACKAGES = ("numpy", "scipy", "matplotlib", "pyarrow")
_PLAN = "plan.json"
UNKNOWN = "not recorded"
Entry = tuple[str, str]
"""(question, answer)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The input of a report: its digest, the study around it, the versions used."""

    table: str
    """File name of the table that was fitted; no path, so that a report can move."""
    sha256: str
    study: Mapping[str, Any] | None
    """The resolved study of plan.json; None for a table on its own."""
    plan_sha256: str | None
    versions: Mapping[str, str]
    git_sha: str | None
    """Commit of the checkout that isoflop runs from; None where it is installed otherwise."""
    columns: frozenset[str]
    """Columns of the table that hold a value in any row."""
    registered: tuple[Registered, ...] = ()
    """Predictions of the study that were registered before their budgets' runs."""

    @property
    def name(self) -> str:
        """The study's name, else the table's."""
        return self.table if self.study is None else str(self.study["name"])


def source_of(table: Path, rows: list[dict[str, Any]], study_folder: Path | None = None) -> Source:
    """Describe a table and its study.

    Args:
        table: the file that was fitted.
        rows: its rows.
        study_folder: where a plan.json may lie; None: beside the table.

    Raises:
        UserError: the plan.json is not JSON, or predictions.json is damaged.
    """
    folder = study_folder or table.parent
    plan = folder / _PLAN
    study = read_json(plan, "plan").get("study") if plan.is_file() else None
    return Source(
        table=table.name,
        sha256=sha256_file(table),
        study=study,
        plan_sha256=sha256_file(plan) if study is not None else None,
        versions={
            "isoflop": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        git_sha=_git_sha(),
        columns=frozenset(key for row in rows for key, value in row.items() if value is not None),
        registered=read_registered(folder) if study is not None else (),
    )


def _git_sha() -> str | None:
    """Return the commit of the checkout around the package, "-dirty" appended if it was changed."""
    root = Path(__file__).resolve().parents[3]
    return commit_of(root) if (root / ".git").exists() else None


def checklist_section(fits: Fits, source: Source) -> Section:
    """Return the four parts of the checklist; what the data do not tell is "not recorded"."""
    study = source.study or {}
    parts = {
        "Form": _form(fits, study),
        "Training": _training(fits, study, source),
        "Data collection": _collection(fits, source),
        "Fitting": _fitting(fits),
    }
    columns = [label_column("question", "Question"), label_column("answer", "Answer")]
    return Section(
        key="checklist",
        title="Checklist",
        blocks=tuple(
            table(title, columns, [{"question": q, "answer": a} for q, a in entries])
            for title, entries in parts.items()
        ),
    )


_C_OF_LAWS: dict[Budget, str] = {
    "nominal": "budget_flops: nominal training FLOPs of the budget",
    "achieved": "flops: training FLOPs achieved, the mean of the runs of an optimum",
}


def _form(fits: Fits, study: Mapping[str, Any]) -> list[Entry]:
    forms = sorted({fit.form for fit in fits.parametric})
    return [
        ("Equations", "power laws y = k · C^p" + (f"; {', '.join(forms)}" if forms else "")),
        ("N", "n_params: all parameters, the tied embedding once" if study else "n_params"),
        ("D", "n_tokens: training tokens of the run"),
        ("C of the power laws", _C_OF_LAWS[fits.law_budget]),
        ("FLOP convention", str(study.get("convention", UNKNOWN))),
        ("Unit of the loss", "nats per token" if study else "that of the table"),
        ("What optima are taken over", fits.options.axis),
    ]


def _training(fits: Fits, study: Mapping[str, Any], source: Source) -> list[Entry]:
    points = [point for group in fits.groups.values() for point in group]
    seeds = sorted({point.seed for point in points if point.seed is not None})
    sizes = [point.n_params for point in points]
    tokens = [point.n_tokens for point in points]
    return [
        ("Families", ", ".join(fits.archs) or "none"),
        ("Budgets (FLOPs)", ", ".join(format_flops(budget) for budget in fits.budgets) or "none"),
        ("Parameters", _span(sizes)),
        ("Tokens", _span(tokens)),
        ("Match between families", str(study.get("match", UNKNOWN))),
        ("Recipe (optimizer, learning rate, schedule)", str(study.get("recipe", UNKNOWN))),
        ("Peak learning rates", _rates(study)),
        ("Learning rate tuned per family and size", _tuned(study)),
        ("Batch size (sequences)", str(study.get("batch_size") or _by_recipe(study))),
        ("Sequence length (tokens)", str(study.get("seq_len") or _by_recipe(study))),
        ("Training data", str(study.get("source", UNKNOWN))),
        ("Tokenizer", str(study.get("tokenizer", UNKNOWN))),
        ("Passes over the data, at most", str(study.get("max_epochs", UNKNOWN))),
        ("Seeds", ", ".join(map(str, seeds)) or UNKNOWN),
        ("Training time", "wall_s of each run" if "wall_s" in source.columns else UNKNOWN),
    ]


def _rates(study: Mapping[str, Any]) -> str:
    """Return the rates that the study sets; a recipe has one for all families."""
    rates = study.get("learning_rates") or {}
    given = ", ".join(f"{arch} {rate:g}" for arch, rate in rates.items())
    return given or ("the recipe's for all" if study else UNKNOWN)


def _tuned(study: Mapping[str, Any]) -> str:
    if not study:
        return UNKNOWN
    if study.get("learning_rates"):
        return "set per family, the same at every size; how they were chosen is not recorded"
    return "no: the recipe's at every family and size"


def _evaluated_on(study: Mapping[str, Any] | None) -> str:
    recipe = None if study is None else study.get("recipe")
    if recipe is None:
        return UNKNOWN
    most = get_recipe(recipe).most_heldout_tokens
    if most is None:
        return "the whole held-out set, after training"
    return f"evenly spread windows of the held-out set (at most {most:,} tokens), after training"


def _by_recipe(study: Mapping[str, Any]) -> str:
    return "the recipe's at each budget" if study else UNKNOWN


def _span(values: Sequence[float]) -> str:
    return f"{format_count(min(values))} to {format_count(max(values))}" if values else "none"


def _collection(fits: Fits, source: Source) -> list[Entry]:
    num_points = sum(len(group) for group in fits.groups.values())
    study = source.study
    return [
        ("Runs in the fits", str(num_points)),
        ("Dropped runs", excluded_note(fits)),
        ("Checkpoints", "final only, one point per run" if study else UNKNOWN),
        ("Smoothing or interpolation of losses", "none" if study else UNKNOWN),
        ("Loss measured on", _evaluated_on(study)),
        (
            "Standard error of a loss",
            "loss_se of each run" if "loss_se" in source.columns else UNKNOWN,
        ),
        ("Repeated cells (same size and budget)", _repeats(fits)),
    ]


def _repeats(fits: Fits) -> str:
    num_cells = sum(len({point.size_key for point in group}) for group in fits.groups.values())
    repeated = seed_noise(fits.selection).n_cells
    return f"{repeated} of {num_cells}" if repeated else "none: seed noise is not measured"


def _fitting(fits: Fits) -> list[Entry]:
    settings = sorted({fit.settings for fit in fits.parametric if fit.settings})
    starts = [fit for fit in fits.parametric if fit.n_starts is not None]
    return [
        ("Optima", f"{fits.options.method}, beside the other methods in the validity section"),
        (
            "Power laws",
            f"least squares of ln y on ln C ({fits.law_budget}), interior optima only",
        ),
        ("Parametric objective", "; ".join(settings) or "none fitted"),
        (
            "Starts of the optimiser",
            f"{min(f.n_starts or 0 for f in starts)} or more" if starts else "none",
        ),
        ("Intervals", _intervals(fits)),
        ("Validation", "see the validity section" if fits.validity else "none"),
    ]


def _intervals(fits: Fits) -> str:
    kinds = {str(draws.kind) for draws in fits.draws.values()}
    kinds |= {fit.bootstrap_kind for fit in fits.parametric if fit.bootstrap_kind}
    if not kinds:
        return "none"
    return (
        f"{100 * fits.options.confidence:g} % percentiles, bootstrap: {', '.join(sorted(kinds))}, "
        f"{fits.options.n_boot} draws, seed {fits.options.seed}"
    )


def source_section(source: Source, fits: Fits) -> Section:
    """Return where the numbers come from: digests, versions and options."""
    entries = {
        "Input": source.table,
        "sha256 of the input": source.sha256,
        "sha256 of plan.json": source.plan_sha256,
        "Commit of isoflop": source.git_sha or "not known",
        **source.versions,
        "Options": ", ".join(
            f"{name} {value}" for name, value in asdict(fits.options).items() if value is not None
        ),
    }
    columns = [label_column("what", "What"), label_column("value", "Value")]
    rows = [{"what": what, "value": value} for what, value in entries.items() if value is not None]
    return Section(
        key="source", title="Source", blocks=(table("Where this comes from", columns, rows),)
    )
