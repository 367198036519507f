"""A plan on disk: plan.json for people and review, plan.parquet for tables.

A plan that is read is checked: every derived number against its spec, and the runs against the
study that asked for them. To look at a plan imports nothing that it names: of a family from outside
the package, the counts of the layer are then as the plan states them, and all else is checked.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal

from isoflop.accounting import Ledger
from isoflop.code_files import CODE_FILE
from isoflop.code_folder import Code, read_code, write_code
from isoflop.errors import UserError, shown
from isoflop.families import family_names, is_built_in, use_planned_families
from isoflop.files import dump_json, read_json, write_text_atomic
from isoflop.numbers import format_flops
from isoflop.plan.auto import ExpectedOptimum
from isoflop.plan.models import Models
from isoflop.plan.own import OwnRuns, PlannedCount, check_unchanged
from isoflop.plan.planner import Plan
from isoflop.plan.runs import (
    PlannedRun,
    describe_run,
    run_ledger,
    stated_ledger,
    steps_of_epochs,
)
from isoflop.spec import (
    LATER_FIELDS,
    RunSpec,
    TrainerSpec,
    run_id,
    spec_from_json,
)
from isoflop.study import SIZES_AUTO, Study, check_more_seeds_at
from isoflop.tables import PLAN, write_table
from isoflop.validate import CLOSED, Count, Digest, in_file, validated, wrong_in_file

PLAN_FILE = "plan.json"
PLAN_SCHEMA_VERSION = 2

Estimates = Mapping[str, Mapping[str, float | None]]
"""The est_ columns of plan.parquet by run id."""

# Entries of a study that say where its runs and the code of its families are found, or what is
# trained once for several of them, not what runs: planning again may change them.
NOT_WHAT_RUNS = ("placement", "family_paths", "share", "keep_trunks")
# Entries of a study that have defaults but are in plans of all versions.
_ALWAYS_WRITTEN = ("variants", "hypotheses", "placement")
_DO = "do not edit a plan by hand: change the study and plan again"
_DO_RESTORE = "restore it or plan again"
_ABSENT = object()
_SEEDLESS = attrgetter(
    *(f.name for f in dataclasses.fields(RunSpec) if f.name not in ("seed", "config"))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """A plan.json without its runs."""

    __pydantic_config__: ClassVar = CLOSED

    schema_version: Literal[2]
    """Raised when the meaning of a field changes."""
    study: Study
    num_train_tokens: Count | None
    """Of the training data; null: not known."""
    family_digests: Mapping[str, Digest]
    """Sha256 over the source of each family from outside the package."""
    expected: tuple[ExpectedOptimum, ...]
    """For `auto` sizes, in the order budget, arch; else empty."""
    left_out: tuple[str, ...]
    """Rungs that the recipe's rule offered and the planner dropped, with the reason."""
    counts: tuple[PlannedCount, ...] = ()
    """What the models of the study's own trainer cost; absent without one."""


# Keys of plan.json that are only written where they hold something.
LATER_KEYS = ("counts",)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFile(_Head):
    """A plan: the resolved study and its runs in the order budget, arch, size, seed."""

    runs: tuple[PlannedRun, ...]


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the value of plan.json."""
    return {
        "schema_version": PLAN_SCHEMA_VERSION,
        "study": plan.study.to_json(),
        "num_train_tokens": plan.num_train_tokens,
        "family_digests": dict(plan.family_digests),
        "expected": [dataclasses.asdict(optimum) for optimum in plan.expected],
        "left_out": list(plan.left_out),
        **({"counts": list(map(dataclasses.asdict, plan.counts))} if plan.counts else {}),
        "runs": [run.to_json() for run in plan.runs],
    }


def write_plan(plan: Plan, folder: Path, estimates: Estimates | None = None) -> bool:
    """Write plan.json and plan.parquet into ``folder``.

    Returns False, changing nothing, if the same plan is there already. One that differs only in
    where it runs (NOT_WHAT_RUNS) is replaced: its runs are the same, and their results stay. So is
    one whose results are read otherwise ([trainer.result]), as long as there are none.

    Args:
        plan: the plan.
        folder: its folder.
        estimates: the est_ columns of plan.parquet by run id; None: null.

    Raises:
        UserError: the folder holds a different plan; nothing is written.
    """
    path = folder / PLAN_FILE
    text = dump_json(plan_to_json(plan))
    if path.exists():
        values = json.loads(text)
        there = read_json(path, "plan")
        if _what_runs(there) != _what_runs(values):
            _check_result_alone(plan, values, there, folder)
        if there == values:
            if not (folder / "plan.parquet").exists():
                write_plan_table(plan, folder, estimates)
            return False
    _write_both(plan, text, folder, estimates)
    return True


def _check_result_alone(plan: Plan, values: Any, there: Any, folder: Path) -> None:
    """Raise UserError unless a plan reads results otherwise than the one there, with none yet."""
    if _what_runs(there, "result") == _what_runs(values, "result"):
        if not any(folder.glob("runs/*/result.json")):
            return
        allowed = f"what the results in {folder} were read by"
        raise UserError("trainer.result", shown("another one"), allowed, "rename the study")
    is_code = isinstance(there, dict) and there.get("study") == values["study"]
    if plan.study.trainer is not None and is_code:
        check_unchanged(read_plan(folder).code, plan.study.trainer)
    allowed = "the plan of this study (another one is there)"
    do = (
        f"see what differs (plan with another --out, then `isoflop diff {folder} OTHER`), give the "
        f"study another name, or grow the plan in place with `isoflop extend {folder}`"
    )
    raise UserError("plan", str(folder / PLAN_FILE), allowed, do)


def _what_runs(values: Any, *more: str) -> Any:
    """Return the value of a plan.json without what says where it runs, and more of its trainer."""
    if not isinstance(values, dict) or not isinstance(values.get("study"), dict):
        return values
    study = {key: value for key, value in values["study"].items() if key not in NOT_WHAT_RUNS}
    if isinstance(study.get("trainer"), dict):
        not_what = ("code", "branch", *more)
        study["trainer"] = {k: v for k, v in study["trainer"].items() if k not in not_what}
    return values | {"study": study}


def replace_plan(plan: Plan, folder: Path) -> None:
    """Write a plan over the one in ``folder``; for a caller that has checked what may change."""
    _write_both(plan, dump_json(plan_to_json(plan)), folder, None)


def _write_both(plan: Plan, text: str, folder: Path, estimates: Estimates | None) -> None:
    # By the record of its code a folder is known as a study's, which is no code: it comes first.
    if plan.code is not None:
        write_code(folder, plan.code)
    # The JSON is the plan; it is written last, so that a folder with it is complete. Cut off in
    # between, an older JSON still stands, and the same command writes both again.
    write_plan_table(plan, folder, estimates)
    write_text_atomic(folder / PLAN_FILE, text)


def write_plan_table(plan: Plan, folder: Path, estimates: Estimates | None = None) -> None:
    """Write plan.parquet, with the est_ columns by run id where they are known."""
    known = estimates or {}
    rows = [run.row() | dict(known.get(run.run_id, {})) for run in plan.runs]
    write_table(folder / "plan.parquet", rows, PLAN)


def read_plan(folder: Path, *, with_code: bool = False) -> Plan:
    """Return the plan of a study folder, with every derived number checked against its spec.

    Args:
        folder: the study's folder.
        with_code: import the families from outside the package, if their sources are those that
            were planned: only for who is about to use them.

    Raises:
        UserError: no plan, not JSON, another schema version, a field that does not follow from the
            rest of the plan, or a source that is not the planned one.
    """
    if not (folder / PLAN_FILE).exists():
        raise UserError(
            "study folder",
            str(folder),
            f"an existing folder with a {PLAN_FILE}",
            "run `isoflop plan STUDY.toml` and give the folder that it names",
        )
    return read_plan_file(folder / PLAN_FILE, with_code=with_code)


def read_plan_file(path: Path, *, with_code: bool = False) -> Plan:
    """Return the plan of a plan.json, wherever it lies, checked as by :func:`read_plan`."""
    head, entries = _read_head(read_json(path, "plan"), path)
    study = head.study
    if with_code:
        use_planned_families(study.family_paths, head.family_digests)
    reader = _RunReader(head, path, with_code=with_code)
    runs = tuple(reader.read(entry, index) for index, entry in enumerate(entries))
    check_runs_are_the_study(study, runs, head.num_train_tokens, path)
    _check_expected(head, path)
    named = {run.spec.family for run in runs if isinstance(run.spec, RunSpec)}
    families = {family for family in named if not is_built_in(family)}
    if families != set(head.family_digests):
        raise _corrupt(path, "with its runs' families from outside the package in family_digests")
    return Plan(
        study=study,
        num_train_tokens=head.num_train_tokens,
        runs=runs,
        left_out=head.left_out,
        expected=head.expected,
        family_digests=head.family_digests,
        stated_families=() if with_code else tuple(head.family_digests),
        counts=head.counts,
        code=_code_beside(path, runs),
        with_code=with_code,
    )


def _code_beside(path: Path, runs: Sequence[PlannedRun]) -> Code | None:
    """Return the code of a plan's own trainer; None where it has none, or not the record of it."""
    digests = {run.spec.code for run in runs if isinstance(run.spec, TrainerSpec)}
    if not digests or not (path.parent / CODE_FILE).exists():
        return None
    return read_code(path.parent, digests.pop())


def _read_head(values: Any, path: Path) -> tuple[_Head, list[Any]]:
    """Return what comes before the runs, checked, and the entries of the runs."""
    version = values.get("schema_version") if isinstance(values, dict) else None
    # Another version may well have other keys.
    if version and version != PLAN_SCHEMA_VERSION:
        raise _corrupt(path, f"of schema version {PLAN_SCHEMA_VERSION} (it is {version!r})")
    names = [field.name for field in dataclasses.fields(PlanFile)]
    keys = [name for name in names if name not in LATER_KEYS or (version and name in values)]
    if not version or sorted(values) != sorted(keys):
        raise _corrupt(path, f"with exactly the keys {', '.join(keys)}")
    runs = values["runs"]
    if not isinstance(runs, list):
        raise _corrupt(path, "with a list under runs")
    try:
        for name in _ALWAYS_WRITTEN:
            if isinstance(values["study"], dict) and name not in values["study"]:
                raise UserError(f"study.{name}", None, "given", "add it")
        head = validated(_Head, {name: values[name] for name in keys if name != "runs"})
    except UserError as error:
        raise in_file(error, path, _DO_RESTORE) from None
    return head, runs


def _check_expected(head: _Head, path: Path) -> None:
    """Check the frozen estimates of an `auto` study; a later prior would not give the same."""
    study = head.study
    is_auto = study.sizes == SIZES_AUTO
    places = [(b, a) for b in study.budgets for a in study.archs] if is_auto else []
    if len(head.expected) != len(places):
        raise _corrupt(path, f"with {len(places)} entries under expected")
    for index, (optimum, (budget, arch)) in enumerate(zip(head.expected, places, strict=True)):
        place = (optimum.budget_flops, optimum.arch)
        if place != (budget, arch) or not math.isfinite(optimum.size):
            raise refusal(
                path,
                f"expected[{index}]",
                dataclasses.asdict(optimum),
                f"a size for {arch} at {format_flops(budget)}",
            )


class _RunReader:
    """Recomputes each run from its spec; a stored number that differs is refused by name."""

    def __init__(self, head: _Head, path: Path, *, with_code: bool) -> None:
        self._study = study = head.study
        self._digests = head.family_digests
        self._with_code = with_code
        families = {family for family, _ in map(study.family_and_overrides, study.archs)}
        reference = study.match_reference
        if reference is not None:
            families.add(study.family_and_overrides(reference)[0])
        self._all_known = with_code or all(is_built_in(name) for name in families)
        self._num_train_tokens = head.num_train_tokens
        self._path = path
        self._counts = head.counts
        self._own: OwnRuns | None = None
        self._described: dict[Any, PlannedRun] = {}
        self._models: dict[int, Models] = {}

    def read(self, entry: Any, index: int) -> PlannedRun:
        """Return the run in ``runs[index]``."""
        where = f"runs[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("arch"), str):
            raise _corrupt(self._path, f"with a run in {where}")
        for key in ("size", "budget_flops"):
            if type(entry.get(key)) is not int or entry[key] < 1:
                raise _corrupt(self._path, f"with a positive whole number in {where}.{key}")
        try:
            spec = spec_from_json(entry.get("spec"))
        except UserError as error:
            field = f"{where}.{error.field}"
            raise wrong_in_file(self._path, field, error.value, error.allowed, error.do) from None
        if isinstance(spec, TrainerSpec):
            run = self._own_run(spec, entry, where)
        else:
            run = self._describe(spec, entry)
        expected = run.to_json()
        for key in sorted(set(expected) | set(entry)):
            there, right = entry.get(key, _ABSENT), expected.get(key, _ABSENT)
            # 1.0 equals 1 in Python, but FLOPs are exact integers in every reader's language.
            if type(there) is not type(right) or there != right:
                raise self._refuse(
                    f"{where}.{key}", entry.get(key), repr(expected.get(key, "absent"))
                )
        return run

    def _own_run(self, spec: TrainerSpec, entry: dict[str, Any], where: str) -> PlannedRun:
        """Return the run of the study's own trainer that an entry is at the place of."""
        arch, size = entry["arch"], entry["size"]
        if not self._study.has_trainer(arch):
            raise _corrupt(self._path, f"with an arch of its [trainer] in {where}")
        # All of them are of one digest: that of the code that was planned.
        if self._own is None:
            self._own = OwnRuns(self._study, self._counts, spec.code)
        if not self._own.has(arch, size):
            raise _corrupt(self._path, f"with a count of {arch} size {size}")
        try:
            return self._own.run(entry["budget_flops"], arch, size, spec.seed)
        except UserError as error:
            raise in_file(error, self._path, _DO_RESTORE) from None

    def _describe(self, spec: RunSpec, entry: dict[str, Any]) -> PlannedRun:
        """Return what follows from a spec, once for all seeds, which only the id depends on."""
        place = (entry["arch"], entry["size"], entry["budget_flops"])
        key = (place, _SEEDLESS(spec), tuple(spec.config.items()))
        if key not in self._described:
            arch, size, budget_flops = place
            if not is_built_in(spec.family) and spec.family not in self._digests:
                allowed = f"one of {', '.join(family_names())}"
                raise UserError("family", spec.family, allowed, "correct the study")
            known = self._with_code or is_built_in(spec.family)
            self._described[key] = describe_run(
                spec,
                arch=arch,
                size=size,
                budget_flops=budget_flops,
                convention=self._study.convention,
                num_train_tokens=self._num_train_tokens,
                match_residual=self._match_residual(spec, entry),
                ledger=None if known else self._stated_ledger(spec, entry),
            )
        return dataclasses.replace(self._described[key], spec=spec, run_id=run_id(spec))

    def _stated_ledger(self, spec: RunSpec, entry: dict[str, Any]) -> Ledger:
        try:
            return stated_ledger(spec, entry)
        except UserError as error:
            raise in_file(error, self._path, _DO_RESTORE) from None

    def _match_residual(self, spec: RunSpec, entry: dict[str, Any]) -> float | None:
        size = entry["size"]
        if self._study.match == "ladder":
            return None
        if not self._all_known:
            stated = entry.get("match_residual")
            if type(stated) is not float or not abs(stated) <= self._study.tolerance:
                raise _corrupt(self._path, f"with a match_residual of {entry['arch']}")
            return stated
        models = self._models.setdefault(spec.vocab_size, Models(self._study, spec.vocab_size))
        return models.match_residual(run_ledger(spec), size, spec.seq_len)

    def _refuse(self, field: str, found: object, allowed: str) -> UserError:
        return refusal(
            self._path, field, found, f"{allowed}, which follows from the rest of the plan"
        )


def _corrupt(path: Path, allowed: str) -> UserError:
    return UserError("plan", str(path), f"a plan {allowed}", _DO_RESTORE)


def check_runs_are_the_study(
    study: Study, runs: Sequence[PlannedRun], num_train_tokens: int | None, path: Path
) -> None:
    """Check that every run the study asks for is there, in order, once, and nothing else.

    Raises:
        UserError: a run is missing, out of place or another than the study asks for.
    """
    sizes: dict[tuple[int | float, str], set[int]] = {}
    found = []
    for index, run in enumerate(runs):
        target = _target(study, run, num_train_tokens)
        sizes.setdefault((target, run.arch), set()).add(run.size)
        found.append((target, run.arch, run.size, run.spec.seed))
        _check_run_is_of_the_study(study, run, f"runs[{index}]", path)
    places = [
        (target, arch, size, seed)
        for target in study.targets
        for arch in study.archs
        for size in study.sizes_at(int(target), arch) or sorted(sizes.get((target, arch), (0,)))
        for seed in study.seeds_at(int(target), arch, size)
    ]
    for (target, arch), planned in sizes.items():
        check_more_seeds_at(study, int(target), arch, sorted(planned))
    for index, (asked, there) in enumerate(itertools.zip_longest(places, found)):
        if asked != there:
            raise refusal(
                path,
                f"runs[{index}]",
                shown(_place(there)),
                f"{_place(asked)} (the study's runs in the order budget, arch, size, seed)",
            )


def _target(study: Study, run: PlannedRun, num_train_tokens: int | None) -> int | float:
    """Return the budget of a run, or in a study set by epochs those that it makes."""
    tokens_per_step = run.spec.batch_size * run.spec.seq_len
    for epochs in study.epochs:
        # A plan by epochs whose data have no known size matches none of them.
        steps = steps_of_epochs(epochs, num_train_tokens or 0, tokens_per_step)
        if run.spec.steps == steps:
            return epochs
    return run.budget_flops


def _check_run_is_of_the_study(study: Study, run: PlannedRun, where: str, path: Path) -> None:
    if run.arch not in study.archs:
        raise refusal(path, f"{where}.arch", run.arch, f"one of {', '.join(study.archs)}")
    if isinstance(run.spec, TrainerSpec):
        # It was made from the study.
        return
    if study.has_trainer(run.arch):
        raise refusal(path, f"{where}.spec", run.spec.family, "a run of the study's [trainer]")
    family, overrides = study.family_and_overrides(run.arch)
    expected = {"family": family, "recipe": study.recipe_of(run.arch), **overrides}
    if study.seq_len is not None:
        expected["seq_len"] = study.seq_len
    if study.batch_size is not None:
        expected["batch_size"] = study.batch_size
    # A configuration leaves out a later field at its old meaning.
    config = {**LATER_FIELDS.get(family, {}), **run.spec.config}
    for name, value in expected.items():
        inside = config if name in config else run.spec.to_json()
        if inside.get(name) != value:
            raise refusal(
                path, f"{where}.spec.{name}", inside.get(name), f"{value!r}, as the study says"
            )
    masked = run.spec.document_mask
    if masked != study.document_mask:
        says = f"{study.document_mask}, as the study says"
        raise refusal(path, f"{where}.spec.document_mask", masked, says)
    left = run.budget_flops - run.flops
    if left and study.epochs:
        raise refusal(path, f"{where}.budget_flops", run.budget_flops, "what the run takes")
    if not 0 <= left * run.spec.steps < run.flops:
        raise refusal(
            path, f"{where}.spec.steps", run.spec.steps, "as many steps as the budget pays for"
        )


def _place(place: tuple[int | float, str, int, int] | None) -> str:
    if place is None:
        return "nothing"
    target, arch, size, seed = place
    at = f"{target:g} epochs" if isinstance(target, float) else format_flops(target)
    return f"{arch} size {size} seed {seed} at {at}" if size else f"some size of {arch} at {at}"


def refusal(path: Path, field: str, found: object, allowed: str) -> UserError:
    """Return the error for a field that is not what the rest of the plan says."""
    return UserError(
        f"{path}: {field}",
        found,
        allowed,
        _DO,
    )
