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
from isoflop.analysis.load import digest_of
from isoflop.analysis.registered import Registered, read_registered
from isoflop.analysis.report.document import Section, label_column, table
from isoflop.analysis.result import Fits, excluded_note
from isoflop.analysis.shared_noise import executed_text, shared_noise
from isoflop.code_files import commit_of
from isoflop.code_folder import read_code
from isoflop.errors import UserError
from isoflop.files import read_json, sha256_file
from isoflop.ingest.store import IMPORT, ImportRecord, read_import, without_folders
from isoflop.ingest.store import TABLE as IMPORTED_TABLE
from isoflop.numbers import format_count, format_flops
from isoflop.recipe import get_recipe
from isoflop.study.trainer import ArchTable, Trainer
from isoflop.tables import OWN_TRAINER
from isoflop.units import NATS, unit_words
from isoflop.validate import validated

_PACKAGES = ("numpy", "scipy", "matplotlib", "pyarrow")
_PLAN = "plan.json"
UNKNOWN = "not recorded"
NO_BUDGETS = "none: no run has a budget"
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
    own_archs: tuple[str, ...] = ()
    """Those that a trainer of one's own trained."""
    has_others: bool = True
    """Whether isoflop's own trainer trained any."""
    code: str | None = None
    """Digest and commit of that trainer's code, as planned; None without one."""
    registered: tuple[Registered, ...] = ()
    """Predictions of the study that were registered before their budgets' runs."""
    imported: ImportRecord | None = None
    """How the table came from one of others; None: it did not."""
    executed: str | None = None
    """FLOPs and hours of all runs, and those that were executed; None: no runs share a trunk."""

    @property
    def name(self) -> str:
        """The study's name, else what was imported, else the table's name."""
        if self.study is not None:
            return str(self.study["name"])
        return self.table if self.imported is None else without_folders(self.imported.source)


def source_of(table: Path, rows: list[dict[str, Any]], study_folder: Path | None = None) -> Source:
    """Describe a table and its study.

    Args:
        table: the file that was fitted.
        rows: its rows.
        study_folder: where a plan.json may lie; None: beside the table.

    Raises:
        UserError: the plan.json is not JSON, or predictions.json or import.json is damaged.
    """
    folder = study_folder or table.parent
    plan = folder / _PLAN
    planned = read_json(plan, "plan") if plan.is_file() else {}
    study = planned.get("study")
    own = {str(row["arch"]) for row in rows if row.get("family") == OWN_TRAINER}
    return Source(
        table=table.name,
        sha256=digest_of(table),
        study=study,
        plan_sha256=sha256_file(plan) if study is not None else None,
        versions={
            "isoflop": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        git_sha=_git_sha(),
        columns=frozenset(key for row in rows for key, value in row.items() if value is not None),
        own_archs=tuple(sorted(own)),
        has_others=any(row.get("family") != OWN_TRAINER for row in rows),
        code=_code(folder, planned),
        registered=read_registered(folder) if study is not None else (),
        imported=_imported(table) if study is None else None,
        executed=executed_text(rows),
    )


def _imported(table: Path) -> ImportRecord | None:
    is_there = table.name == IMPORTED_TABLE and (table.parent / IMPORT).is_file()
    return read_import(table.parent) if is_there else None


def _code(folder: Path, planned: Mapping[str, Any]) -> str | None:
    """Return digest and commit of the trainer's code; None where the plan has none."""
    specs = [run.get("spec") for run in planned.get("runs", ())]
    digests = [spec["code"] for spec in specs if isinstance(spec, dict) and "code" in spec]
    if not digests:
        return None
    shown = f"sha256 {digests[0][:12]} over its files"
    try:
        commit = read_code(folder, digests[0]).commit
    except UserError:
        return f"{shown}; code.json, which has the commit, is missing or damaged"
    return f"{shown}, commit {commit or 'not known (no git)'}"


def _git_sha() -> str | None:
    """Return the commit of the checkout around the package, "-dirty" appended if it was changed."""
    root = Path(__file__).resolve().parents[3]
    return commit_of(root) if (root / ".git").exists() else None


def checklist_section(fits: Fits, source: Source) -> Section:
    """Return the four parts of the checklist; what the data do not tell is "not recorded"."""
    study = source.study or {}
    values = study.get("trainer")
    trainer = None if values is None else validated(Trainer, values, what="trainer of plan.json")
    parts = {
        "Form": _form(fits, study),
        "Training": _training(fits, study, source),
        **({} if trainer is None else {"Trainer": _trainer(trainer, study, source)}),
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
    has_laws = bool(fits.groups)
    equations = ["power laws y = k · C^p"] * has_laws + ([", ".join(forms)] if forms else [])
    return [
        ("Equations", "; ".join(equations) or "none"),
        ("N", _n_is(fits, study)),
        ("D", "n_tokens: training tokens of the run"),
        ("C of the power laws", _C_OF_LAWS[fits.law_budget] if has_laws else NO_BUDGETS),
        ("FLOP convention", _convention(fits, study)),
        ("Unit of the loss", _unit_of(fits, study)),
        ("What optima are taken over", fits.options.axis if has_laws else NO_BUDGETS),
    ]


def _training(fits: Fits, study: Mapping[str, Any], source: Source) -> list[Entry]:
    points = fits.selection.points
    archs = sorted({*fits.archs, *(point.arch for point in points)})
    seeds = sorted({point.seed for point in points if point.seed is not None})
    sizes = [point.n_params for point in points]
    tokens = [point.n_tokens for point in points]
    return [
        ("Families", ", ".join(archs) or "none"),
        ("Budgets (FLOPs)", ", ".join(format_flops(budget) for budget in fits.budgets) or "none"),
        ("Parameters", _span(sizes)),
        ("Tokens", _span(tokens)),
        ("Match between families", str(study.get("match", UNKNOWN))),
        *(_recipe(study, source) if source.has_others else _OWN_RECIPE),
        ("Seeds", ", ".join(map(str, seeds)) or UNKNOWN),
        ("Training time", "wall_s of each run" if "wall_s" in source.columns else UNKNOWN),
        *([] if source.executed is None else [("Executed", source.executed)]),
    ]


def _recipe(study: Mapping[str, Any], source: Source) -> list[Entry]:
    """Return what the recipe of isoflop's own trainer sets."""
    entries = [
        ("Recipe (optimizer, learning rate, schedule)", str(study.get("recipe", UNKNOWN))),
        ("Peak learning rates", _rates(study)),
        ("Learning rate tuned per family and size", _tuned(study)),
        ("Batch size (sequences)", str(study.get("batch_size") or _by_recipe(study))),
        ("Sequence length (tokens)", str(study.get("seq_len") or _by_recipe(study))),
        ("Training data", str(study.get("source", UNKNOWN))),
        ("Tokenizer", str(study.get("tokenizer", UNKNOWN))),
        ("Passes over the data, at most", str(study.get("max_epochs", UNKNOWN))),
    ]
    if not source.own_archs:
        return entries
    others = f" (not of {', '.join(source.own_archs)}: see Trainer)"
    return [(question, f"{answer}{others}") for question, answer in entries]


_OWN_RECIPE: tuple[Entry, ...] = (
    ("Recipe (optimizer, learning rate, schedule)", "the trainer's own, by its command"),
    ("Learning rate tuned per family and size", UNKNOWN),
    ("Tokenizer", UNKNOWN),
    ("Passes over the data", UNKNOWN),
)


def _trainer(trainer: Trainer, study: Mapping[str, Any], source: Source) -> list[Entry]:
    """Return what the study says of its own trainer."""
    result = trainer.result
    where = f"{result.kind} {result.path}" if result.path != "{result}" else "its result"
    archs = [validated(ArchTable, table) for table in study.get("trainer_archs", ())]
    comparable = "Losses compare with those of isoflop's own trainer"
    return [
        ("Archs", ", ".join(source.own_archs)),
        ("Command", " ".join(trainer.command)),
        ("Code", source.code or UNKNOWN),
        ("Sizes (rungs of the ladder)", _rungs(trainer.ladder)),
        *[("What differs in an arch", _arch(table)) for table in archs],
        ("Batch size (tokens)", f"{trainer.batch_tokens:,}"),
        ("Sequence length (tokens)", f"{trainer.seq_len:,}"),
        ("Training data", f"{trainer.data} (a label)"),
        ("FLOPs and parameters", _counted(trainer.count)),
        ("Loss", f"{result.loss} in {where}, {unit_words(result.unit)}"),
        ("Further metrics", ", ".join(result.metrics) or "none named"),
        *([(comparable, "yes, as the study says")] if source.has_others else []),
        ("After an interruption", _RESUMED[trainer.resume]),
    ]


_RESUMED = {
    "native": "the command goes on from its own checkpoint",
    "restart": "the command begins anew",
}


def _rungs(ladder: Mapping[str, Sequence[Any]]) -> str:
    return "; ".join(f"{name} = {', '.join(map(str, on))}" for name, on in ladder.items())


def _counted(count: Any) -> str:
    return f"counted, by {count}" if isinstance(count, str) else "declared, not counted"


def _arch(arch: ArchTable) -> str:
    """Return what a study says of one arch of its trainer."""
    parts = [
        " ".join(arch.args),
        "" if arch.command is None else f"command {' '.join(arch.command)}",
        " ".join(f"{name}={value}" for name, value in arch.env.items()),
        _rungs(arch.ladder),
        "" if arch.count is None else _counted(arch.count),
        ", ".join(f"{name} = {value} in the count" for name, value in arch.count_with.items()),
    ]
    return f"{arch.name}: {'; '.join(filter(None, parts)) or 'nothing of the command'}"


def _convention(fits: Fits, study: Mapping[str, Any]) -> str:
    convention = str(study.get("convention", UNKNOWN))
    if fits.declared_archs and fits.declared_archs == fits.archs:
        return "none: FLOPs are as declared"
    if fits.declared_archs:
        return f"{convention}; as declared of {', '.join(fits.declared_archs)}"
    return convention


def _unit_of(fits: Fits, study: Mapping[str, Any]) -> str:
    if fits.unit == NATS and not study:
        return "that of the table"
    return unit_words(fits.unit)


def _n_is(fits: Fits, study: Mapping[str, Any]) -> str:
    if fits.declared_archs and fits.declared_archs == fits.archs:
        return "n_params: as declared"
    if fits.declared_archs:
        return f"n_params: as declared of {', '.join(fits.declared_archs)}; else all parameters"
    if study.get("trainer"):
        return "n_params: all parameters, one that has several names once"
    return "n_params: all parameters, the tied embedding once" if study else "n_params"


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


def _evaluated_on(study: Mapping[str, Any] | None, source: Source) -> str:
    if source.own_archs:
        own = f"whatever the trainer's own evaluation takes ({', '.join(source.own_archs)})"
        return f"{own}; {_heldout(study)}" if source.has_others else own
    return _heldout(study)


def _heldout(study: Mapping[str, Any] | None) -> str:
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
    study = source.study
    return [
        ("Runs in the fits", str(len(fits.selection.points))),
        ("Dropped runs", excluded_note(fits)),
        *_import_entries(source.imported),
        ("Checkpoints", "final only, one point per run" if study else UNKNOWN),
        (
            "Smoothing or interpolation of losses",
            UNKNOWN if source.own_archs or not study else "none",
        ),
        ("Loss measured on", _evaluated_on(study, source)),
        (
            "Standard error of a loss",
            "loss_se of each run" if "loss_se" in source.columns else UNKNOWN,
        ),
        ("Repeated cells (same size and budget)", _repeats(fits)),
        *_shared_entries(fits),
    ]


def _shared_entries(fits: Fits) -> list[Entry]:
    """Return which runs are not independent of each other; nothing where no trunks are shared."""
    shared = shared_noise(fits.selection)
    if not shared.trunk_of:
        return []
    num = len(set(shared.trunk_of.values()))
    rho = f"noise alike by {shared.correlation.value:.2f} ({shared.words})"
    return [("Runs of one trunk", f"{len(shared.trunk_of)} in {num} trunks; {rho}")]


def _import_entries(imported: ImportRecord | None) -> list[Entry]:
    if imported is None:
        return []
    left = [f"{number:,} {reason}" for reason, number in imported.dropped.items()]
    files = f"{len(imported.files)} file{'s' * (len(imported.files) != 1)}"
    rows = f"{imported.num_rows:,} runs of {without_folders(imported.source)} ({files})"
    return [
        ("Imported", rows),
        ("Rows left out on import", "; ".join(left) or "none"),
        ("Columns, by the source's", "; ".join(_mapped(imported))),
    ]


def _mapped(imported: ImportRecord) -> list[str]:
    """Return what each column of ours is there."""
    mapping = imported.mapping
    pairs = [f"{ours} = {theirs}" for ours, theirs in mapping.columns.items()]
    pairs += [
        f"{ours} from {column} by {mapping.parse[column]}"
        for ours, column in mapping.parsed.items()
    ]
    pairs += [f"{ours} computed: {how}" for ours, how in imported.derived.items()]
    if mapping.flops_unit not in (None, "flop"):
        pairs.append(f"flops in {mapping.flops_unit}")
    if mapping.run is not None:
        pairs.append(f"runs told apart by {mapping.run}, of each the {mapping.take} step")
    return pairs


def _repeats(fits: Fits) -> str:
    num_cells = sum(len({point.size_key for point in group}) for group in fits.groups.values())
    repeated = seed_noise(fits.selection).n_cells
    return f"{repeated} of {num_cells}" if repeated else "none: seed noise is not measured"


def _fitting(fits: Fits) -> list[Entry]:
    settings = sorted({fit.settings for fit in fits.parametric if fit.settings})
    starts = [fit for fit in fits.parametric if fit.n_starts is not None]
    optima = f"{fits.options.method}, beside the other methods in the validity section"
    laws = f"least squares of ln y on ln C ({fits.law_budget}), interior optima only"
    return [
        ("Optima", optima if fits.groups else NO_BUDGETS),
        ("Power laws", laws if fits.groups else NO_BUDGETS),
        ("Parametric objective", "; ".join(settings) or "none fitted"),
        (
            "Starts of the optimiser",
            f"{min(f.n_starts or 0 for f in starts)} or more" if starts else "none",
        ),
        ("Intervals", _intervals(fits)),
        ("Validation", "see the validity section" if fits.validity and fits.groups else "none"),
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


_MAX_FILES = 10


def _import_source(source: Source) -> dict[str, str]:
    """Return where an imported table came from, with digests."""
    imported = source.imported
    if imported is None:
        return {}
    files = [
        f"{without_folders(file.name)} "
        f"(sha256 {(file.sha256 or 'not known')[:12]}, {file.num_rows:,} rows)"
        for file in imported.files
    ]
    if len(files) > _MAX_FILES:
        files = [*files[:_MAX_FILES], f"and {len(files) - _MAX_FILES} more, in {IMPORT}"]
    return {
        "Imported from": without_folders(imported.source),
        "Files of the source": "; ".join(files) or "none",
        "Imported by": f"isoflop {imported.isoflop}",
        **(
            {}
            if source.sha256 == imported.runs_sha256
            else {"Since the import": f"{source.table} was changed: {IMPORT} describes another"}
        ),
    }


def source_section(source: Source, fits: Fits) -> Section:
    """Return where the numbers come from: digests, versions and options."""
    entries = {
        "Input": source.table,
        "sha256 of the input": source.sha256,
        "sha256 of plan.json": source.plan_sha256,
        **_import_source(source),
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
