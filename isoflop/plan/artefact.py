"""A plan on disk: plan.json for people and review, plan.parquet for tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.files import dump_json, read_json, write_text_atomic
from isoflop.plan.identity import RunSpec
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun, describe_run
from isoflop.tables import PLAN, write_table

PLAN_SCHEMA_VERSION = 1
_KEYS = ("schema_version", "study", "num_train_tokens", "left_out", "runs")


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The value of plan.json."""
    return {
        "schema_version": PLAN_SCHEMA_VERSION,
        "study": plan.study.to_json(),
        "num_train_tokens": plan.num_train_tokens,
        "left_out": list(plan.left_out),
        "runs": [run.to_json() for run in plan.runs],
    }


def write_plan(plan: Plan, folder: Path) -> bool:
    """Writes plan.json and plan.parquet into ``folder``.

    Returns False, changing nothing, if the same plan is there already.

    Raises:
        UserError: the folder holds a different plan; nothing is written.
    """
    path = folder / "plan.json"
    text = dump_json(plan_to_json(plan))
    if path.exists():
        if path.read_bytes() != text.encode():
            raise UserError(
                "plan",
                str(path),
                "the plan of this study (another one is there)",
                "choose another --out or name; growing a plan in place will be "
                "`isoflop extend`, which this version does not have yet",
            )
        _write_parquet_if_missing(plan, folder)
        return False
    # The JSON is the plan; it is written last, so that a folder with it is complete.
    _write_parquet(plan, folder)
    write_text_atomic(path, text)
    return True


def _write_parquet(plan: Plan, folder: Path) -> None:
    write_table(folder / "plan.parquet", [run.row() for run in plan.runs], PLAN)


def _write_parquet_if_missing(plan: Plan, folder: Path) -> None:
    if not (folder / "plan.parquet").exists():
        _write_parquet(plan, folder)


def read_plan(folder: Path) -> Plan:
    """The plan of a study folder, with every derived number checked against its spec.

    Raises:
        UserError: no plan, not JSON, another schema version, or a field that does not follow from
            the rest of the plan.
    """
    path = folder / "plan.json"
    if not folder.is_dir():
        raise UserError("study folder", str(folder), "an existing folder", "run `isoflop plan`")
    values = read_json(path, "plan")
    _check_top(values, path)
    # pydantic is slow to import and only needed where a file is read.
    from isoflop.study_file import study_from_json

    study = study_from_json(values["study"])
    num_train_tokens = values["num_train_tokens"]
    runs = []
    for index, entry in enumerate(values["runs"]):
        runs.append(_read_run(entry, f"runs[{index}]", study.convention, num_train_tokens, path))
    return Plan(
        study=study,
        num_train_tokens=num_train_tokens,
        runs=tuple(runs),
        left_out=tuple(values["left_out"]),
    )


def _check_top(values: Any, path: Path) -> None:
    if not isinstance(values, dict) or sorted(values) != sorted(_KEYS):
        raise _corrupt(path, f"with exactly the keys {', '.join(_KEYS)}")
    if values["schema_version"] != PLAN_SCHEMA_VERSION:
        raise _corrupt(
            path, f"of schema version {PLAN_SCHEMA_VERSION} (it is {values['schema_version']!r})"
        )
    if not isinstance(values["runs"], list) or not isinstance(values["left_out"], list):
        raise _corrupt(path, "with lists under runs and left_out")
    tokens = values["num_train_tokens"]
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise _corrupt(path, "with num_train_tokens null or a positive whole number")


def _read_run(
    entry: Any, where: str, convention: str, num_train_tokens: int | None, path: Path
) -> PlannedRun:
    """One run, recomputed from its spec; a stored number that differs is refused by name."""
    if not isinstance(entry, dict) or not isinstance(entry.get("arch"), str):
        raise _corrupt(path, f"with a run in {where}")
    for key in ("size", "budget_flops"):
        if type(entry.get(key)) is not int or entry[key] < 1:
            raise _corrupt(path, f"with a positive whole number in {where}.{key}")
    run = describe_run(
        RunSpec.from_json(entry.get("spec")),
        arch=entry["arch"],
        size=entry["size"],
        budget_flops=entry["budget_flops"],
        convention=convention,
        num_train_tokens=num_train_tokens,
    )
    expected = run.to_json()
    for key in sorted(set(expected) | set(entry)):
        if key not in entry or key not in expected or entry[key] != expected[key]:
            raise UserError(
                f"{path}: {where}.{key}",
                entry.get(key),
                f"{expected.get(key, 'absent')!r}, which follows from the rest of the plan",
                "do not edit a plan by hand: change the study and plan again",
            )
    return run


def _corrupt(path: Path, allowed: str) -> UserError:
    return UserError("plan", str(path), f"a plan {allowed}", "restore it or plan again")
