"""What the documents say is so: their code runs, their tables name every column, paths exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.cli import main
from isoflop.study_file import study_from_toml
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

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "*/*.md", "isoflop/*/*.md", "tests/*/*.md")
    for path in REPOSITORY.glob(pattern)
    if ".venv" not in path.parts
)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


WITH_CODE = [path for path in DOCUMENTS if blocks(path, "python")]


@pytest.mark.parametrize("path", WITH_CODE, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_python_in_documents_runs(path: Path) -> None:
    for code in blocks(path, "python"):
        subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def _commands(path: Path) -> list[str]:
    lines = [line for text in blocks(path, "sh") for line in text.splitlines()]
    return [line for line in lines if line.startswith("isoflop ")]


@pytest.mark.parametrize(
    ("path", "line"),
    [(path, line) for path in DOCUMENTS for line in _commands(path)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_commands_in_documents_are_commands(path: Path, line: str) -> None:
    """Parses each as the command line would; running them all would take an hour."""
    arguments = shlex.split(line, comments=True)[1:]
    context = main.make_context("isoflop", list(arguments))
    name, verb, rest = main.resolve_command(context, arguments)
    assert verb is not None
    verb.make_context(name, rest, parent=context)


def test_the_example_study_is_a_study() -> None:
    import tomllib

    (text,) = blocks(REPOSITORY / "experiments" / "README.md", "toml")
    study = study_from_toml(tomllib.loads(text))
    assert study.name == "my-study"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_every_column_of_every_table_is_documented() -> None:
    text = (REPOSITORY / "results" / "README.md").read_text()
    for schema in (PLAN, RUNS, OPTIMA, FITS, COMPARE, EXPONENTS, VALIDITY, HYPOTHESES, SEED_MEANS):
        for name, kind in schema.columns:
            shown = {"list<string>": "list of string"}.get(kind, kind)
            assert f"| `{name}` | {shown} |" in text, (schema.table, name)


def test_every_top_folder_says_what_lives_there() -> None:
    for name in ("kernels", "experiments", "slurm", "results", "notebooks", "tests"):
        assert (REPOSITORY / name / "README.md").is_file(), name
