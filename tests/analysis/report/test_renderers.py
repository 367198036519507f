"""Markdown and LaTeX: every character of a label comes through, none is read as markup."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.report.made_document import NAMES, made_document
from isoflop.analysis.report.document import interval, number_column, table
from isoflop.analysis.report.renderers import (
    escape_latex,
    escape_markdown,
    latex_tables,
    markdown_page,
)


def cells(line: str) -> list[str]:
    """Split a row at the bars that are not escaped."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def plain(text: str) -> str:
    """Undo Markdown's backslashes."""
    return re.sub(r"\\(.)", r"\1", text)


def test_a_markdown_table_keeps_its_columns_and_words() -> None:
    lines = markdown_page(made_document()).splitlines()
    start = lines.index("| Name | Number | Status |")
    assert lines[start + 1] == "| --- | ---: | --- |"
    rows = [cells(line) for line in lines[start + 2 : start + 8]]
    assert [plain(row[0]) for row in rows] == list(NAMES)
    assert [row[1] for row in rows] == ["10", "–", "1e+18", "2", "–", "-3"]


def test_markdown_has_no_markup_of_its_own_making() -> None:
    text = markdown_page(made_document())
    assert not re.search(r"(?<!\\)<", text)
    assert r"\<script\>" in text
    assert "![Two dots" in text
    assert "](plots/dots.png)" in text
    assert "- &#49;. one" in text
    assert "- &#45; three" in text


@given(st.text(max_size=30))
def test_markdown_escapes_are_undone_by_reading_them(text: str) -> None:
    escaped = escape_markdown(text)
    assert "\n" not in escaped
    unescaped = re.sub(r"&#(\d+);", lambda m: chr(int(m[1])), plain(escaped).replace("\\&", "&"))
    if "&#" not in text:
        assert unescaped == " ".join(text.split())


def test_latex_tables_are_balanced_and_escaped() -> None:
    text = latex_tables(made_document())
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 2
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 2
    assert r"c\_d \& 50 \% of \$x\$" in text
    assert r"zeta \textbackslash{} \{q\} \textasciitilde{} \textasciicircum{}" in text
    assert "\\caption{Things \\& \\textless{}others\\textgreater{}}" in text


@given(st.text(alphabet=st.characters(max_codepoint=0x7E), max_size=30))
def test_no_special_character_of_latex_comes_through_bare(text: str) -> None:
    escaped = escape_latex(text)
    bare = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]", "", escaped)
    assert not set(bare) & set('\\&%$#_{}~^<>|"')


def test_a_long_table_is_cut_at_page_length() -> None:
    from isoflop.analysis.report.document import Document, Section

    long = table("Long", [number_column("n", "N")], [{"n": i} for i in range(95)])
    document = Document(
        title="t", subtitle="s", sections=(Section(key="k", title="K", blocks=(long,)),)
    )
    text = latex_tables(document)
    assert text.count(r"\begin{table}") == 3
    assert text.count("Long (continued)") == 2
    assert len(set(re.findall(r"\\label\{([^}]*)\}", text))) == 3


@pytest.mark.parametrize(("low", "high"), [(None, 1.0), (1.0, None), (None, None)])
def test_half_an_interval_is_none(low: float | None, high: float | None) -> None:
    assert interval(low, high, str).text == "–"
    assert interval(low, high, str).value is None
