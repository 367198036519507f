"""Commands of the documents that the fast tests do not run, each with its reason.

A command's name is its text in the document without the comment.
"""

from __future__ import annotations

SLOW: dict[str, str] = {
    "README.md": "trains, fits and opens what the first hour needs",
    "experiments/README.md": "trains a study of the reader's own text",
    "isoflop/analysis/README.md": "fits, reports and simulates studies",
    "isoflop/families/README.md": "trains a family of the reader's own",
    "isoflop/interpret/README.md": "reads a run of 100,000 tokens in every way",
    "isoflop/launch/README.md": "trains eight runs, in processes that are sent off",
    "kernels/README.md": "compiles, checks and times kernels",
    "notebooks/README.md": "executes a notebook",
    "slurm/README.md": "trains eight runs, on a real cluster",
}
"""Documents whose commands take minutes in all; `make test-slow` runs them."""

NEEDS_SLURM = {"slurm/README.md"}

_RESULTS = "test_results.py::test_committed_tables_and_figures_follow_from_the_committed_runs"
_OWN_TEXT = "docs/test_commands.py::test_the_code_of_a_document_runs[experiments/README.md]"
_READ = "docs/test_commands.py::test_the_code_of_a_document_runs[isoflop/interpret/README.md]"

ELSEWHERE: dict[str, dict[str, str]] = {
    "README.md": {
        "isoflop run results/my-study": _OWN_TEXT,
        "isoflop fit results/my-study": _OWN_TEXT,
        "isoflop report results/my-study": _OWN_TEXT,
        "isoflop report results/cpu_reference": _RESULTS,
        "isoflop interpret record results/facts_tiny d71a": _READ,
        "isoflop interpret page results/facts_tiny d71a": _READ,
    },
    "results/README.md": {"isoflop report results/cpu_reference": _RESULTS},
    "results/cpu_reference/README.md": {
        "isoflop fit results/cpu_reference && isoflop report results/cpu_reference": _RESULTS,
    },
}
"""By document, commands that cost much, and the test that runs them: FILE::FUNCTION in tests/."""

_HOURS = "trains for hours; test_results.py makes its tables again from the committed runs"

_MINUTES = "trains for minutes; test_install.py ends the same study, a run of each family"

NOT_RUN: dict[str, dict[str, str]] = {
    "README.md": {"make study": _MINUTES, "isoflop run results/quickstart": _MINUTES},
    "CONTRIBUTING.md": {"make test": "runs these tests"},
    "results/cpu_reference/README.md": {
        "isoflop data prepare files:../shared/data/english_novels.parquet": (
            "its text is too large to lie in the repository"
        ),
        "isoflop plan experiments/learning_rates.toml && isoflop run results/learning_rates": (
            _HOURS
        ),
        "isoflop plan experiments/cpu_reference.toml && isoflop run results/cpu_reference": _HOURS,
        "isoflop refine results/cpu_reference --seeds 2 --apply"
        " && isoflop run results/cpu_reference": _HOURS,
        "isoflop plan experiments/cpu_head.toml && isoflop run results/cpu_head"
        " && isoflop fit results/cpu_head && isoflop report results/cpu_head": _HOURS,
        "python experiments/interpret_claims.py results/cpu_reference": (
            "needs the kept weights, which are not committed"
        ),
    },
}
"""By document, commands that no test can run, and why."""


def left_out(document: str) -> set[str]:
    """Names of the commands of a document that are not run."""
    return ELSEWHERE.get(document, {}).keys() | NOT_RUN.get(document, {}).keys()
