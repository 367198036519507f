"""Code of every document runs, in its order, or a table says why it does not."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from docs.documents import DOCUMENTS, REPOSITORY, shown
from docs.not_run import ELSEWHERE, NEEDS_SLURM, NOT_RUN, SLOW, left_out
from docs.scratch import copy_repository, run_document
from docs.shell import blocks, commands
from isoflop.cli import main
from slurm.made_cluster import INSTALL, is_installed

NAMES = {
    shown(document): {command.name for command in commands(document)} for document in DOCUMENTS
}
RUN = {document: names - left_out(document) for document, names in NAMES.items()}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(name, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, names in RUN.items()
        if names or blocks(REPOSITORY / name, "python")
    ],
)
def test_the_code_of_a_document_runs(document: str, tmp_path: Path) -> None:
    if document in NEEDS_SLURM and not is_installed():
        pytest.skip(f"needs root and SLURM; run {INSTALL}")
    run_document(REPOSITORY / document, copy_repository(tmp_path), left_out(document))


def test_the_tables_name_only_commands_and_documents_that_there_are() -> None:
    for document in (*ELSEWHERE, *NOT_RUN):
        assert not left_out(document) - NAMES[document], document
        assert not ELSEWHERE.get(document, {}).keys() & NOT_RUN.get(document, {}).keys(), document
    assert all(RUN[document] for document in SLOW)


@pytest.mark.parametrize(
    ("name", "test"), sorted({pair for table in ELSEWHERE.values() for pair in table.items()})
)
def test_a_command_that_another_test_runs_has_that_test(name: str, test: str) -> None:
    found = re.fullmatch(r"(.+)::(\w+)(?:\[(.+)\])?", test)
    assert found
    file, function, document = found.groups()
    tree = ast.parse((REPOSITORY / "tests" / file).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert document is None or name in RUN[document]


@pytest.mark.parametrize("name", sorted(set().union(*map(left_out, NAMES))))
def test_a_command_that_is_not_run_could_be(name: str) -> None:
    """It parses as the command line would; its targets, modules and files exist."""
    for words in _simple_commands(name):
        program, arguments = words[0], words[1:]
        if program == "isoflop":
            _parse(arguments)
        elif program == "make":
            subprocess.run(["make", "--dry-run", *arguments], cwd=REPOSITORY, check=True)
        elif program == "python" and arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1])
        elif program == "python":
            assert (REPOSITORY / arguments[0]).is_file()
        elif "/" in program and not program.startswith("/"):
            assert (REPOSITORY / program).is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_commands_stand_in_blocks_that_are_run(document: Path) -> None:
    text = document.read_text()
    assert not re.search(r"^```(bash|shell|console)$", text, flags=re.MULTILINE)
    inside = {command.line + i for command in commands(document) for i in range(len(command.lines))}
    indented = re.compile(r"(?: {4}|\t)(?:isoflop|make|pip|python|pytest|sudo|source) ")
    for number, line in enumerate(text.splitlines(), start=1):
        assert number in inside or not indented.match(line), line


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_verbs_and_options_named_in_sentences_exist(document: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`(isoflop [^`]+)`", prose):
        verb: click.Command = main
        words = code.split()[1:]
        for word in itertools.takewhile(lambda word: word.isalpha() and word.islower(), words):
            if isinstance(verb, click.Group):
                assert word in verb.commands, code
                verb = verb.commands[word]
        options = {name for parameter in verb.params for name in parameter.opts}
        used = {word.partition("=")[0].strip("[]()") for word in words if word.startswith("--")}
        assert used <= options | {"--help", "--version"}, code


def _simple_commands(line: str) -> list[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts = [
        list(words)
        for is_operator, words in itertools.groupby(
            lexer, key=lambda word: word in ("&&", "|", ";")
        )
        if not is_operator
    ]
    set_before = re.compile(r"\w+=|sudo$")
    return [list(itertools.dropwhile(set_before.match, words)) for words in parts]


def _parse(arguments: list[str]) -> None:
    context = main.make_context("isoflop", list(arguments))
    name, verb, rest = main.resolve_command(context, arguments)
    assert verb is not None
    verb.make_context(name, rest, parent=context)
