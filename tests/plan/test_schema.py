from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop.files import dump_json
from isoflop.plan import artefact
from isoflop.plan.artefact import plan_to_json
from isoflop.plan.planner import make_plan
from isoflop.plan.schema import plan_schema
from isoflop.study import Hypothesis, Study, Variant, paper_study
from made_studies import micro, set_value
from made_trainer import own_study

SCHEMA_FILE = Path(artefact.__file__).with_name("plan.schema.json")
SCHEMA = json.loads(SCHEMA_FILE.read_text())

RICH_STUDY = micro(
    sizes={10**10: {"default": (1, 2), "mlp": (1,)}},
    variants=(Variant(arch="mlp/wide", family="mlp", overrides={"hidden_width": 99}),),
    archs=("mlp", "mlp/wide", "sgatlin"),
    hypotheses=(Hypothesis(id="H1", claim="wider is better", decide="multiplier > 1"),),
    seeds=(0, 1),
    document_mask=True,
)

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: type(value) is bool,
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "null": lambda value: value is None,
}
_CHECKS: dict[str, Callable[[Any, Any], bool]] = {
    "const": lambda value, asked: value == asked,
    "enum": lambda value, asked: value in asked,
    "minimum": lambda value, asked: value >= asked,
    "exclusiveMaximum": lambda value, asked: value < asked,
    "exclusiveMinimum": lambda value, asked: value > asked,
    "pattern": lambda value, asked: re.search(asked, value) is not None,
}
_KNOWN = {
    *("$ref", "anyOf", "type", "properties", "required", "additionalProperties", "items"),
    *("description", "$defs", "$schema", "title", *_CHECKS),
}


def mistakes(value: Any, schema: dict[str, Any], where: str = "plan") -> list[str]:
    """A validator for what the schema uses; a keyword that it does not know fails."""
    assert set(schema) <= _KNOWN, set(schema) - _KNOWN
    if "$ref" in schema:
        return mistakes(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], where)
    if "anyOf" in schema:
        found = [mistakes(value, inner, where) for inner in schema["anyOf"]]
        return [] if [] in found else [f"{where}: none of the alternatives"]
    if "type" in schema and not _TYPES[schema["type"]](value):
        return [f"{where}: no {schema['type']}"]
    for name, check in _CHECKS.items():
        if name in schema and not check(value, schema[name]):
            return [f"{where}: {name}"]
    inner: list[str] = []
    if isinstance(value, list) and "items" in schema:
        for index, entry in enumerate(value):
            inner += mistakes(entry, schema["items"], f"{where}[{index}]")
    if isinstance(value, dict):
        inner += _of_object(value, schema, where)
    return inner


def _of_object(value: dict[str, Any], schema: dict[str, Any], where: str) -> list[str]:
    found = [f"{where}: no {name}" for name in schema.get("required", ()) if name not in value]
    for name, entry in value.items():
        inside = f"{where}.{name}"
        if name in schema.get("properties", {}):
            found += mistakes(entry, schema["properties"][name], inside)
        elif schema.get("additionalProperties") is False:
            found.append(f"{inside}: unknown")
        else:
            found += mistakes(entry, schema.get("additionalProperties", {}), inside)
    return found


def test_the_published_file_is_current() -> None:
    command = "python -m isoflop.plan.schema > isoflop/plan/plan.schema.json"
    assert dump_json(plan_schema()) == SCHEMA_FILE.read_text(), command


@pytest.mark.parametrize(
    "study",
    [
        micro(),
        RICH_STUDY,
        micro(sizes="auto", archs=("mlp", "sgatlin")),
        micro(learning_rates={"mlp": 0.01}, more_seeds={10**10: {"mlp": {1: (5,)}}}),
        micro(budgets=(), epochs=(0.25,)),
        micro(match="active_params", archs=("mlp", "swiglu"), tolerance=0.1),
        paper_study((10**17, 123_456_789_012_345_678_901)),
        paper_study((3 * 10**15,)),
        micro(recipe="micro-v3", share="trunks", keep_trunks=True),
    ],
)
def test_written_plans_follow_the_schema(study: Study) -> None:
    assert mistakes(json.loads(json.dumps(plan_to_json(make_plan(study)))), SCHEMA) == []


# Left out of a plan that does without them.
LATER = {
    "Study": {
        "document_mask",
        "epochs",
        "keep_trunks",
        "learning_rates",
        "more_seeds",
        "share",
        "trainer",
        "trainer_archs",
    },
    "RunSpec": {"document_mask"},
    "PlannedRun": {"declared"},
}


def test_the_schema_knows_every_key_that_is_written() -> None:
    values = plan_to_json(make_plan(RICH_STUDY))
    run = values["runs"][0]
    definitions = SCHEMA["$defs"]
    for name, written in (
        ("Study", values["study"]),
        ("Variant", values["study"]["variants"][0]),
        ("Hypothesis", values["study"]["hypotheses"][0]),
        ("PlannedRun", run),
        ("RunSpec", run["spec"]),
    ):
        known = definitions[name]["properties"]
        later = LATER.get(name, set())
        assert set(known) - later == set(written) - later, name
        assert definitions[name]["required"] == [key for key in known if key not in later]
        assert definitions[name]["additionalProperties"] is False
    assert [key for key in SCHEMA["properties"] if key != "counts"] == list(values)


def test_a_plan_of_a_trainer_of_one_s_own_follows_the_schema(tmp_path: Path) -> None:
    values = json.loads(json.dumps(plan_to_json(make_plan(own_study(tmp_path)))))
    assert mistakes(values, SCHEMA) == []
    for edit, named in (
        (set_value("runs", 0, "spec", "steps", to="1"), "plan.runs[0].spec: none"),
        (set_value("counts", 0, "count", "n_params", to=0), "plan.counts[0].count.n_params"),
        (lambda v: v["study"]["trainer"].pop("data"), "plan.study.trainer: none"),
    ):
        changed = json.loads(json.dumps(values))
        edit(changed)
        assert mistakes(changed, SCHEMA)[0].startswith(named)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (set_value("extra", to=1), "plan.extra: unknown"),
        (set_value("schema_version", to=1), "plan.schema_version: const"),
        (set_value("runs", 0, "flops", to=1.5), "plan.runs[0].flops: no integer"),
        (set_value("runs", 0, "flops", to=0), "plan.runs[0].flops: minimum"),
        (set_value("runs", 0, "run_id", to="abc"), "plan.runs[0].run_id: pattern"),
        (set_value("runs", 0, "residual", to=1.0), "plan.runs[0].residual: exclusiveMaximum"),
        (set_value("runs", 0, "spec", "seed", to="0"), "plan.runs[0].spec: none"),
        (set_value("runs", 0, "spec", "config", "x", to=[]), "plan.runs[0].spec: none"),
        (set_value("study", "budgets", to=[1e10]), "plan.study.budgets[0]: no integer"),
        (lambda values: values["study"].pop("seeds"), "plan.study: no seeds"),
    ],
)
def test_a_plan_that_is_none_does_not_follow_it(
    edit: Callable[[dict[str, Any]], None], named: str
) -> None:
    values = json.loads(json.dumps(plan_to_json(make_plan(micro()))))
    edit(values)
    assert mistakes(values, SCHEMA)[0].startswith(named)
