"""What the documents say is so: tables name every column, and paths, verbs and options exist."""

from __future__ import annotations

import itertools
import re
import tomllib
from dataclasses import fields

import click

from docs.documents import DOCUMENTS, REPOSITORY
from docs.shell import blocks
from isoflop.analysis.compare.differences import EXPONENTS
from isoflop.analysis.compare.multipliers import COMPARE
from isoflop.analysis.compare.one_size import SEED_MEANS
from isoflop.analysis.gate import GATE
from isoflop.analysis.hypotheses import HYPOTHESES
from isoflop.analysis.laws import FITS
from isoflop.analysis.optima import OPTIMA
from isoflop.analysis.predict import PREDICTIONS
from isoflop.analysis.validity import VALIDITY
from isoflop.cli import main
from isoflop.study.file import study_from_toml
from isoflop.study.trainer import ResultTable, Trainer
from isoflop.tables import PLAN, RUNS


def test_the_example_studies_are_studies() -> None:
    found = blocks(REPOSITORY / "experiments" / "README.md", "toml")
    built_in, own = (study_from_toml(tomllib.loads(block.text)) for block in found)
    assert (built_in.name, built_in.trainer) == ("my-study", None)
    assert own.trainer is not None
    for each in (*fields(Trainer), *fields(ResultTable)):
        written = (f"\n{each.name} = ", f"[trainer.{each.name}]", f", {each.name}")
        assert any(text in found[1].text for text in written), each.name


def test_relative_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), (document, target)


FOLDERS = "isoflop|kernels|experiments|slurm|notebooks|tests"
NAMED_FILE = re.compile(rf"`((?:{FOLDERS})/[a-z0-9_./-]+)`")


def test_files_and_folders_named_in_sentences_exist() -> None:
    for document in DOCUMENTS:
        for name in NAMED_FILE.findall(document.read_text()):
            there = (REPOSITORY / name, document.parent / name)
            assert any(path.exists() for path in there), (document, name)


def test_verbs_and_options_named_in_sentences_exist() -> None:
    context = click.Context(main)
    for document in DOCUMENTS:
        prose = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`(isoflop [^`]+)`", prose):
            verb: click.Command | None = main
            words = code.split()[1:]
            for word in itertools.takewhile(lambda word: word.isalpha() and word.islower(), words):
                if isinstance(verb, click.Group):
                    verb = verb.get_command(context, word)
            assert verb is not None, (document, code)
            options = {name for parameter in verb.params for name in parameter.opts}
            used = {word.partition("=")[0].strip("[]()") for word in words if word[:2] == "--"}
            assert used <= options | {"--help", "--version"}, (document, code)


def test_every_column_of_every_table_is_documented() -> None:
    text = (REPOSITORY / "results" / "README.md").read_text()
    fitted = (OPTIMA, FITS, COMPARE, EXPONENTS, VALIDITY, HYPOTHESES, SEED_MEANS)
    for schema in (PLAN, RUNS, *fitted, GATE, PREDICTIONS):
        for name, kind in schema.columns:
            shown_kind = {"list<string>": "list of string"}.get(kind, kind)
            assert f"| `{name}` | {shown_kind} |" in text, (schema.table, name)
