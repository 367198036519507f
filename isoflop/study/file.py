"""The two file forms of a study, checked by pydantic: TOML as written, JSON as frozen in a plan."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr, ValidationError

from isoflop.errors import UserError
from isoflop.files import from_here
from isoflop.study import Hypothesis, Study, Variant, parse_flops

_Model = TypeVar("_Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Variant(_Strict):
    arch: StrictStr
    family: StrictStr
    overrides: dict[str, StrictInt | StrictStr] = {}


class _Hypothesis(_Strict):
    id: StrictStr
    claim: StrictStr
    decide: StrictStr


_Rungs = list[StrictInt]
_SizesByBudget = dict[str, _Rungs | dict[str, _Rungs]]
_SeedsBySize = dict[str, list[StrictInt]]


class _StudySection(_Strict):
    name: StrictStr
    budgets: list[StrictInt | float | StrictStr] = []
    epochs: list[float] = []
    archs: list[StrictStr]
    convention: StrictStr = "paper"
    sizes: _Rungs | _SizesByBudget | StrictStr | None = None
    num_sizes: StrictInt | None = None
    match: StrictStr = "ladder"
    match_reference: StrictStr | None = None
    tolerance: float = 0.01
    seeds: list[StrictInt] = [0]
    more_seeds: dict[str, dict[str, _SeedsBySize]] = {}
    recipe: StrictStr = "paper-v1"
    learning_rates: dict[str, float] = {}
    keep_weights: StrictStr = "none"


class _DataSection(_Strict):
    source: StrictStr = "sotu-embedded"
    tokenizer: StrictStr = "byte"
    seq_len: StrictInt | None = None
    batch_size: StrictInt | None = None
    max_epochs: float = 4.0
    document_mask: StrictBool = False


class _FamiliesSection(_Strict):
    paths: list[StrictStr] = []


class _PlacementSection(_Strict):
    """Only what is given is frozen: the rest is decided when it runs."""

    cluster: Literal["local"] = "local"
    device: Literal["cpu", "cuda"] | None = None
    workers: StrictInt | None = None
    parallel: Literal["single", "ddp", "fsdp", "channel"] | None = None
    ranks: StrictInt | None = None
    micro_batch: StrictInt | None = None
    checkpoint_activations: StrictBool | None = None
    compile: StrictBool | None = None
    checkpoint_every: StrictInt | float | None = None
    evaluate_every: StrictInt | None = None
    sinks: list[Literal["tensorboard", "wandb"]] | None = None


class _StudyFile(_Strict):
    study: _StudySection
    variant: list[_Variant] = []
    hypothesis: list[_Hypothesis] = []
    data: _DataSection = _DataSection()
    families: _FamiliesSection = _FamiliesSection()
    placement: _PlacementSection = _PlacementSection()


def load_study(path: Path) -> Study:
    """Return the study in a TOML file.

    Raises:
        UserError: no such file, not TOML, an unknown key, or a value that is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            "study", str(path), "an existing study file (.toml)", "check the path"
        ) from None
    except (UnicodeDecodeError, PermissionError) as error:
        raise UserError("study", str(path), f"readable text ({error})", "check the file") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError("study", str(path), f"valid TOML ({error})", "correct the file") from None
    return study_from_toml(values, folder=path.parent)


def study_from_toml(values: Mapping[str, Any], folder: Path = Path()) -> Study:
    """Return a study from the parsed TOML of a study file.

    Args:
        values: what the file holds.
        folder: where the file lies; the paths of families start there.

    Raises:
        UserError: an unknown key, a wrong type or a value that is not allowed.
    """
    parsed = _validate(_StudyFile, values)
    return _study(
        parsed.study,
        parsed.data,
        parsed.placement,
        parsed.variant,
        parsed.hypothesis,
        [_kept(folder / path) for path in parsed.families.paths],
    )


def _kept(path: Path) -> str:
    """Return the path as a plan keeps it: relative to the current folder where it lies below it.

    A plan that is made at the top of a repository can then be read in anyone's copy of it.
    """
    return str(from_here(Path(os.path.normpath(Path.cwd() / path))))


class FrozenStudy(_StudySection, _DataSection):
    """The `study` entry of a plan.json."""

    variants: list[_Variant]
    hypotheses: list[_Hypothesis]
    family_paths: list[StrictStr] = []
    placement: _PlacementSection


def study_from_json(values: Any) -> Study:
    """Return a study from the `study` entry of a plan.json (:meth:`Study.to_json`).

    Raises:
        UserError: an unknown key, a wrong type or a value that is not allowed.
    """
    parsed = _validate(FrozenStudy, values)
    return _study(
        parsed,
        parsed,
        parsed.placement,
        parsed.variants,
        parsed.hypotheses,
        parsed.family_paths,
    )


def _study(
    section: _StudySection,
    data: _DataSection,
    placement: _PlacementSection,
    variants: list[_Variant],
    hypotheses: list[_Hypothesis],
    family_paths: list[str],
) -> Study:
    return Study(
        name=section.name,
        budgets=tuple(parse_flops(budget) for budget in section.budgets),
        epochs=tuple(section.epochs),
        archs=tuple(section.archs),
        convention=section.convention,
        sizes=_sizes(section.sizes),
        num_sizes=section.num_sizes,
        match=section.match,
        match_reference=section.match_reference,
        tolerance=section.tolerance,
        seeds=tuple(section.seeds),
        more_seeds=_more_seeds(section.more_seeds),
        recipe=section.recipe,
        learning_rates=section.learning_rates,
        keep_weights=section.keep_weights,
        variants=tuple(Variant(**v.model_dump()) for v in variants),
        hypotheses=tuple(Hypothesis(**h.model_dump()) for h in hypotheses),
        source=data.source,
        tokenizer=data.tokenizer,
        seq_len=data.seq_len,
        batch_size=data.batch_size,
        max_epochs=data.max_epochs,
        document_mask=data.document_mask,
        family_paths=tuple(family_paths),
        placement=placement.model_dump(exclude_none=True),
    )


def _sizes(
    given: _Rungs | _SizesByBudget | str | None,
) -> tuple[int, ...] | dict[int, dict[str, tuple[int, ...]]] | str | None:
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, list):
        return tuple(given)
    return {
        parse_flops(budget, "sizes"): (
            {"default": tuple(entry)}
            if isinstance(entry, list)
            else {arch: tuple(rungs) for arch, rungs in entry.items()}
        )
        for budget, entry in given.items()
    }


def _more_seeds(
    given: Mapping[str, Mapping[str, Mapping[str, list[int]]]],
) -> dict[int, dict[str, dict[int, tuple[int, ...]]]]:
    return {
        parse_flops(budget, "more_seeds"): {
            arch: {_size(size): tuple(seeds) for size, seeds in by_size.items()}
            for arch, by_size in by_arch.items()
        }
        for budget, by_arch in given.items()
    }


def _size(text: str) -> int:
    """Return a size from the key of a table, in its one spelling."""
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise UserError("more_seeds", text, "a size such as 4", "correct the study")
    return int(text)


def _validate(model: type[_Model], values: Any) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _first_mistake(model, error) from None


# What pydantic's kinds of mistakes ask for, in the words of TOML.
_WANTED = {
    "list_type": "a list in square brackets",
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a table",
    "model_type": "a table",
}


def _first_mistake(model: type[BaseModel], error: ValidationError) -> UserError:
    """Return the first thing pydantic found, in one line with the field's dotted name."""
    first = error.errors()[0]
    # Alternatives of a union appear in the location as the names of types: not the user's words.
    words = [
        str(part)
        for part in first["loc"]
        if not str(part).startswith(("list[", "dict[", "constrained-", "float", "int", "str"))
    ]
    name = ".".join(words)
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"])
        near = get_close_matches(words[-1], known, n=1)
        do = f"write {near[0]}" if near else "remove it"
        return UserError(name, first["input"], f"a known key ({', '.join(known)})", do)
    if first["type"] == "missing":
        return UserError(name, None, "given", "add it")
    if name == "placement.cluster":
        do = "leave it out and name the cluster with `isoflop submit --cluster`"
        return UserError(name, first["input"], "'local'", do)
    if first["type"] == "literal_error":
        return UserError(name, first["input"], first["ctx"]["expected"], "correct it")
    message = first["msg"][0].lower() + first["msg"][1:]
    wanted = _WANTED.get(first["type"], f"valid ({message})")
    return UserError(name, first["input"], wanted, "correct it")


def _known_keys(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Return the keys of the table in which a mistake was found."""
    for part in place[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            tables = (annotation, *get_args(annotation))
            model = next(t for t in tables if isinstance(t, type) and issubclass(t, BaseModel))
    return list(model.model_fields)
