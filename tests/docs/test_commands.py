"""Code of every document runs, in its order, or a table says why it does not."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from docs.documents import DOCUMENTS, REPOSITORY, shown
from docs.not_run import NEEDS_SLURM, NOT_RUN, SLOW, SMALLER
from docs.scratch import copy_repository, run_document
from docs.shell import blocks, commands
from isoflop.cli import main
from slurm.made_cluster import INSTALL, is_installed

NAMES = {
    shown(document): {command.name for command in commands(document)} for document in DOCUMENTS
}
RUN = {document: names - NOT_RUN.get(document, {}).keys() for document, names in NAMES.items()}


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
    run_document(
        REPOSITORY / document,
        copy_repository(tmp_path),
        NOT_RUN.get(document, {}),
        SMALLER.get(document, {}),
    )


def test_a_command_that_is_not_run_could_be() -> None:
    """It is in its document and parses as typed; its targets, modules and files exist."""
    for document, names in NOT_RUN.items():
        assert names.keys() <= NAMES[document], document
    for words in itertools.chain.from_iterable(map(_simple_commands, _all_not_run())):
        program, arguments = words[0], words[1:]
        if program == "isoflop":
            _parse(arguments)
        elif program == "make":
            subprocess.run(["make", "--dry-run", *arguments], cwd=REPOSITORY, check=True)
        elif program == "python" and arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1])
        elif program == "python":
            assert (REPOSITORY / arguments[0]).is_file()


def test_commands_stand_in_blocks_that_are_run() -> None:
    for document in DOCUMENTS:
        assert not re.search(r"^```(bash|shell|console)$", document.read_text(), re.M), document


def _all_not_run() -> set[str]:
    return set().union(*NOT_RUN.values())


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
