"""`isoflop report`: a fit as Markdown, as one HTML file and as LaTeX tables, with its figures.

`write_report` writes the files. What they say is a `Document` of sections, made from the fit alone
(optima.py, comparison.py, runs.py, validity.py, source.py) and shown by three renderers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.analysis.compare.one_size import (
    SEED_MEANS,
    compare_shapes,
    has_no_shared_budget,
    is_one_size,
    is_scattered,
)
from isoflop.analysis.hypotheses import HYPOTHESES, Verdict, judge
from isoflop.analysis.report.comparison import comparison_section, findings, findings_section
from isoflop.analysis.report.document import Document, Section, marked
from isoflop.analysis.report.figures import write_figures
from isoflop.analysis.report.optima import laws_section, optima_section, surface_section
from isoflop.analysis.report.predictions import predictions_section
from isoflop.analysis.report.renderers import html_page, latex_tables, markdown_page
from isoflop.analysis.report.runs import (
    reference_of,
    runs_section,
    seed_mean_rows,
    shape_sentences,
    sizes_section,
)
from isoflop.analysis.report.source import Source, checklist_section, source_section
from isoflop.analysis.report.validity import hypotheses_section, validity_section
from isoflop.analysis.result import Fits, excluded_note, write_fitted
from isoflop.files import write_text_atomic
from isoflop.study import Hypothesis
from isoflop.texts import LINES, printable

# The checks that make sense for a study without optima.
_CHECKS_OF_ONE_SIZE = ("seed_noise", "achieved_budget", "near_budget", "duplicate_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The document and the files of a report."""

    document: Document
    markdown_path: Path
    html_path: Path
    latex_path: Path
    table_paths: tuple[Path, ...]
    plot_paths: tuple[Path, ...]
    """A figure as PNG, SVG and PDF after another."""

    @property
    def text_paths(self) -> tuple[Path, ...]:
        """The report in its three formats."""
        return (self.markdown_path, self.html_path, self.latex_path)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files written."""
        return (*self.text_paths, *self.table_paths, *self.plot_paths)


def write_report(fits: Fits, source: Source, out_dir: Path) -> Report:
    """Write report.md, report.html, report.tex, plots/ and, of a study, hypotheses.parquet.

    A study whose families have one size each gets seed_means.parquet too.

    Each file is replaced atomically. The bytes depend on the fit and the source alone: no date is
    written.
    """
    document = make_document(fits, source)
    out_dir.mkdir(parents=True, exist_ok=True)
    plot_paths, pictures = write_figures(fits, document, out_dir / "plots")
    report = Report(
        document=document,
        markdown_path=out_dir / "report.md",
        html_path=out_dir / "report.html",
        latex_path=out_dir / "report.tex",
        table_paths=_write_tables(fits, source, out_dir),
        plot_paths=plot_paths,
    )
    pages = (markdown_page(document), html_page(document, pictures), latex_tables(document))
    for path, page in zip(report.text_paths, pages, strict=True):
        write_text_atomic(path, printable(page, LINES))
    return report


def _write_tables(fits: Fits, source: Source, out_dir: Path) -> tuple[Path, ...]:
    """Write the tables that only a report has: verdicts of a study, means of one-size families."""
    paths = []
    if source.study is not None:
        paths.append(out_dir / "hypotheses.parquet")
        write_fitted(paths[-1], _verdicts(fits, source), HYPOTHESES, fits)
    reference = reference_of(fits, source)
    if reference is not None and is_one_size(fits.selection):
        rows = seed_mean_rows(fits, compare_shapes(fits, reference))
        rows.sort(key=lambda row: (row.arch, row.budget_flops))
        paths.append(out_dir / "seed_means.parquet")
        write_fitted(paths[-1], rows, SEED_MEANS, fits)
    return tuple(paths)


def make_document(fits: Fits, source: Source) -> Document:
    """Return the report as a document, without drawing anything."""
    verdicts = _verdicts(fits, source)
    stated = hypotheses_section(verdicts, has_study=source.study is not None)
    reference = reference_of(fits, source)
    if reference is not None and is_one_size(fits.selection):
        answers = _sections_of_one_size(fits, reference, stated)
    elif fits.selection.loose and not fits.groups:
        where = "No run has a budget: see the laws over all runs."
        answers = (findings_section([where], fits), stated, surface_section(fits))
    else:
        answers = _sections_of_optima(fits, stated)
    registered = source.registered
    sections = (
        *answers,
        *([predictions_section(registered, fits)] if registered else []),
        runs_section(fits),
        checklist_section(fits, source),
        source_section(source, fits),
    )
    points = fits.selection.points
    archs = {*fits.archs, *(point.arch for point in points)}
    return Document(
        title=f"IsoFLOP report: {source.name}",
        subtitle=f"Families: {len(archs)}. Budgets: {len(fits.budgets)}. "
        f"Runs in the fits: {len(points)}. {excluded_note(fits)}",
        sections=tuple(marked(section, fits.declared_archs) for section in sections),
    )


def _sections_of_optima(fits: Fits, stated: Section) -> tuple[Section, ...]:
    return (
        findings_section(findings(fits), fits),
        stated,
        comparison_section(fits.compare, fits.exponents, fits.unit),
        optima_section(fits),
        laws_section(fits),
        validity_section(fits.validity.findings if fits.validity is not None else ()),
    )


def _sections_of_one_size(fits: Fits, reference: str, stated: Section) -> tuple[Section, ...]:
    pairs = compare_shapes(fits, reference)
    checks = fits.validity.findings if fits.validity is not None else ()
    sentences: list[str] = []
    fitted: list[Section] = []
    if not is_scattered(fits.selection):
        sentences = shape_sentences(pairs, fits.options.confidence, fits.unit)
        fitted = [sizes_section(fits, pairs, reference)]
    if has_no_shared_budget(fits.selection):
        fitted.append(surface_section(fits))
    return (
        findings_section(sentences, fits),
        stated,
        *fitted,
        validity_section([check for check in checks if check.check in _CHECKS_OF_ONE_SIZE]),
    )


def _verdicts(fits: Fits, source: Source) -> tuple[Verdict, ...]:
    stated: Sequence[dict[str, Any]] = (source.study or {}).get("hypotheses", ())
    return judge([Hypothesis(**hypothesis) for hypothesis in stated], fits)
