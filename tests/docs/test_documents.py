"""What the documents say is so: their tables name every column, paths exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from docs.documents import DOCUMENTS, REPOSITORY, shown
from docs.shell import blocks
from isoflop.study.file import study_from_toml
from isoflop.tables import (
    COMPARE,
    EXPONENTS,
    FITS,
    HYPOTHESES,
    OPTIMA,
    PLAN,
    RUNS,
    SEED_MEANS,
    VALIDITY,
)


def test_the_example_study_is_a_study() -> None:
    (block,) = blocks(REPOSITORY / "experiments" / "README.md", "toml")
    study = study_from_toml(tomllib.loads(block.text))
    assert study.name == "my-study"


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


FOLDERS = "isoflop|kernels|experiments|slurm|notebooks|tests"
NAMED_FILE = re.compile(rf"`((?:{FOLDERS})/[a-z0-9_./-]+)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_files_and_folders_named_in_sentences_exist(document: Path) -> None:
    for name in NAMED_FILE.findall(document.read_text()):
        assert any((folder / name).exists() for folder in (REPOSITORY, document.parent)), name


def test_every_column_of_every_table_is_documented() -> None:
    text = (REPOSITORY / "results" / "README.md").read_text()
    for schema in (PLAN, RUNS, OPTIMA, FITS, COMPARE, EXPONENTS, VALIDITY, HYPOTHESES, SEED_MEANS):
        for name, kind in schema.columns:
            shown_kind = {"list<string>": "list of string"}.get(kind, kind)
            assert f"| `{name}` | {shown_kind} |" in text, (schema.table, name)
