"""The TOML file of a study; frozen in a plan.json it is a :class:`Study` as it is."""

from __future__ import annotations

import dataclasses
import functools
import os
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.families import add_family_folder
from isoflop.files import from_here
from isoflop.placement import PlacementTable
from isoflop.study import SIZES_DEFAULT, SizesBudget, Study
from isoflop.validate import CLOSED, validated

# Fields of a study that a file has in tables of their own: by the table, or renamed.
_DATA = ("source", "tokenizer", "seq_len", "batch_size", "max_epochs", "document_mask")
_ELSEWHERE = (
    *_DATA,
    "variants",
    "hypotheses",
    "family_paths",
    "placement",
    "trainer",
    "trainer_archs",
)
# What a study with a trainer has by default, where built-in families have something else: own code
# counts every product, and what it wrote is not removed without being asked.
_WITH_TRAINER = {"convention": "paper+head", "keep_weights": "all"}

# A person may write the sizes of a budget once for all archs.
_Rungs = tuple[int, ...]
_Sizes = _Rungs | Mapping[SizesBudget, _Rungs | Mapping[str, _Rungs]] | str | None


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


def names_data(path: Path) -> bool:
    """Return whether a study file, which was loaded before, says which data it takes."""
    return "source" in tomllib.loads(path.read_text(encoding="utf-8")).get("data", {})


def study_from_toml(values: Mapping[str, Any], folder: Path = Path()) -> Study:
    """Return a study from the parsed TOML of a study file.

    Args:
        values: what the file holds.
        folder: where the file lies; the paths of families start there.

    Raises:
        UserError: an unknown key, a wrong type or a value that is not allowed.
    """
    file = validated(_file_type(), values)
    paths = tuple(_kept(folder / path) for path in file.families.paths)
    for path in paths:
        add_family_folder(Path(path))
    if isinstance(file.study.sizes, Mapping):
        file.study.sizes = {b: _by_arch(entry) for b, entry in file.study.sizes.items()}
    trainer = file.trainer
    if trainer is not None:
        trainer = dataclasses.replace(trainer, code=_kept(folder / trainer.code))
        given = values["study"]
        defaults = {k: value for k, value in _WITH_TRAINER.items() if k not in given}
        file.study = dataclasses.replace(file.study, **defaults)
    return Study(
        **vars(file.study),
        **vars(file.data),
        trainer=trainer,
        trainer_archs=file.arch,
        variants=file.variant,
        hypotheses=file.hypothesis,
        family_paths=paths,
        placement=PlacementTable(cluster="local") | file.placement,
    )


def _by_arch(sizes: _Rungs | Mapping[str, _Rungs]) -> Mapping[str, _Rungs]:
    return {SIZES_DEFAULT: sizes} if isinstance(sizes, tuple) else sizes


@functools.cache
def _file_type() -> Any:
    """Return the type of a study file, whose tables have the fields of :class:`Study`."""
    types = typing.get_type_hints(Study, include_extras=True) | {"sizes": _Sizes}
    known = dataclasses.fields(Study)
    fields = {f.name: (types[f.name], f.default, f.default_factory) for f in known}
    missing = dataclasses.MISSING
    study = _table("Study", {key: fields[key] for key in fields if key not in _ELSEWHERE})
    data = _table("Data", {name: fields[name] for name in _DATA})
    families = _table("Families", {"paths": (tuple[str, ...], (), missing)})
    return _table(
        "StudyFile",
        {
            "study": (study, missing, missing),
            "variant": fields["variants"],
            "hypothesis": fields["hypotheses"],
            "data": (data, missing, data),
            "families": (families, missing, families),
            "placement": fields["placement"],
            "trainer": fields["trainer"],
            "arch": fields["trainer_archs"],
        },
    )


def _table(name: str, fields: Mapping[str, tuple[Any, Any, Any]]) -> Any:
    """Return a class of some fields, each with its type, default and maker of a default."""
    return dataclasses.make_dataclass(
        name,
        [
            (key, kind, dataclasses.field(default=default, default_factory=factory))
            for key, (kind, default, factory) in fields.items()
        ],
        kw_only=True,
        namespace={"__pydantic_config__": CLOSED},
    )


def _kept(path: Path) -> str:
    """Return the path as a plan keeps it: relative to the current folder where it lies below it.

    A plan that is made at the top of a repository can then be read in anyone's copy of it.
    """
    return str(from_here(Path(os.path.normpath(Path.cwd() / path))))
