"""The JSON schema of plan.json: plan.schema.json is what `python -m isoflop.plan.schema` prints."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Mapping
from typing import Any

from isoflop.accounting.count import Count
from isoflop.files import dump_json
from isoflop.plan.artefact import LATER_KEYS, PLAN_SCHEMA_VERSION, PlanFile
from isoflop.plan.auto import ExpectedOptimum
from isoflop.plan.own import PlannedCount
from isoflop.plan.runs import COUNTED, OTHER, PlannedRun
from isoflop.spec import LATER_SPEC_FIELDS, RunSpec, TrainerSpec
from isoflop.study import LATER_ENTRIES, Hypothesis, Study, Variant
from isoflop.study.trainer import (
    LATER_TRAINER_ENTRIES,
    ArchTable,
    BranchTable,
    DeclaredCount,
    ResultTable,
    Trainer,
)


def plan_schema() -> dict[str, Any]:
    """Return the JSON schema of plan.json (draft 2020-12), for readers in other languages.

    It follows from :class:`PlanFile`; plan.schema.json is what `python -m isoflop.plan.artefact`
    prints. Every field is always written, but those that later versions added.
    """
    from pydantic import TypeAdapter

    schema = TypeAdapter(PlanFile).json_schema()
    tables = schema["$defs"]
    del tables["PlannedRun"]["properties"]["ledger"], tables["Ledger"]
    tables["PlannedRun"]["properties"]["flops_per_token"] |= {
        "additionalProperties": False,
        "properties": {name: {"type": "integer", "minimum": 0} for name in (*COUNTED, OTHER)},
    }
    optional = {
        "RunSpec": set(LATER_SPEC_FIELDS),
        "Study": set(LATER_ENTRIES),
        "Trainer": set(LATER_TRAINER_ENTRIES),
        "PlannedRun": {"declared"},
        # Of what is declared, nothing is known by component.
        "flops_per_token": {*COUNTED, OTHER},
        "": set(LATER_KEYS),
    }
    # Placement alone is frozen only as far as the study gives it.
    optional["PlacementTable"] = set(tables["PlacementTable"]["properties"]) - {"cluster"}
    kinds = (
        PlanFile,
        ExpectedOptimum,
        PlannedRun,
        RunSpec,
        Study,
        Variant,
        Hypothesis,
        TrainerSpec,
        Trainer,
        BranchTable,
        ResultTable,
        DeclaredCount,
        ArchTable,
        PlannedCount,
        Count,
    )
    for table, kind in [(schema, PlanFile), *((tables[k.__name__], k) for k in kinds[1:])]:
        for name, text in _field_docs(kind).items():
            if name in table["properties"]:
                table["properties"][name]["description"] = text
    schema = _all_required(schema, "", optional)
    title = f"isoflop plan, version {PLAN_SCHEMA_VERSION}"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title} | schema


def _all_required(node: Any, name: str, optional: Mapping[str, set[str]]) -> Any:
    """Return a schema in which all properties are required but some of named tables."""
    if isinstance(node, list):
        return [_all_required(inner, "", optional) for inner in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: _all_required(inner, key, optional)
        for key, inner in node.items()
        if name == "properties" or key not in ("title", "default")
    }
    if "properties" in node and name != "properties":
        left_out = optional.get(name, set())
        kept["required"] = [key for key in node["properties"] if key not in left_out]
    return kept


def _field_docs(kind: type[Any]) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass and of those it is made from."""
    import ast
    import inspect

    docs: dict[str, str] = {}
    for each in (base for base in kind.__mro__ if dataclasses.is_dataclass(base)):
        body = ast.parse(inspect.getsource(each)).body[0].body  # type: ignore[attr-defined]
        for before, after in itertools.pairwise(body):
            if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
                text = ast.literal_eval(after.value)
                docs[ast.unparse(before.target)] = " ".join(text.split())
    return docs


if __name__ == "__main__":
    sys.stdout.write(dump_json(plan_schema()))
