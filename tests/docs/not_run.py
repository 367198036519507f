"""Commands of the documents that are slow to run, run smaller or not run, each with its reason.

A command's name is its text in the document without the comment.
"""

from __future__ import annotations

SLOW: dict[str, str] = {
    "README.md": "trains, fits and opens what the first hour needs",
    "experiments/README.md": "trains a study of the reader's own text",
    "isoflop/accounting/README.md": "counts a model in a process of its own",
    "isoflop/analysis/README.md": "fits, reports and simulates studies",
    "isoflop/data/README.md": "prepares a set of each kind of source",
    "isoflop/families/README.md": "gates and plans a family of the reader's own",
    "isoflop/interpret/README.md": "reads a run of 100,000 tokens in every way",
    "isoflop/launch/README.md": "trains eight runs, in processes that are sent off",
    "kernels/README.md": "compiles, checks and times kernels",
    "notebooks/README.md": "executes a notebook",
    "results/paper/README.md": "plans the paper's study and writes its report at scale",
    "slurm/README.md": "trains eight runs, on a real cluster",
}
"""Documents whose commands take minutes in all; `make test-slow` runs them."""

NEEDS_SLURM = {"slurm/README.md"}

SMALLER: dict[str, dict[str, str]] = {
    "experiments/README.md": {
        # 18 runs of seconds; 40 runs take five minutes of processor time, as the document says.
        "budgets = [1e10, 2e10, 4e10]": "budgets = [1e9, 2e9, 4e9]",
    },
}
"""By document, texts of it in whose place another stands when it is run, and why."""

_RESULTS = "test_results.py makes these tables and figures again from the committed runs"
_SLOW = "runs with the document that it is taken from"
_ANALYSIS = "runs with isoflop/analysis/README.md"
_HOURS = "trains for hours; test_results.py makes its tables again from the committed runs"

_MINUTES = "trains for minutes; test_install.py ends the same study, a run of each family"
_OWN_FAMILY = "trains for minutes; launch/test_run.py trains and fits a family from a folder"

NOT_RUN: dict[str, dict[str, str]] = {
    "README.md": {
        "make study": _MINUTES,
        "isoflop run results/quickstart": _MINUTES,
        "isoflop fit results/quickstart": _ANALYSIS,
        "isoflop report results/quickstart": _ANALYSIS,
        "isoflop run results/my-study": _SLOW,
        "isoflop fit results/my-study": _SLOW,
        "isoflop report results/my-study": _SLOW,
        "isoflop report results/cpu_reference": _RESULTS,
        "isoflop data prepare synthetic:tiny:0": _SLOW,
        "isoflop interpret record results/facts_tiny d71a": _SLOW,
        "isoflop interpret page results/facts_tiny d71a": _SLOW,
    },
    "isoflop/families/README.md": {
        "isoflop run results/bilinear": _OWN_FAMILY,
        "isoflop fit results/bilinear": _OWN_FAMILY,
        "isoflop report results/bilinear": _OWN_FAMILY,
    },
    "results/README.md": {"isoflop report results/cpu_reference": _RESULTS},
    "results/trunks/README.md": {"isoflop report results/trunks": _RESULTS},
    "CONTRIBUTING.md": {"make test": "runs these tests"},
    "results/cpu_reference/README.md": {
        "isoflop fit results/cpu_reference && isoflop report results/cpu_reference": _RESULTS,
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
"""By document, commands that are not run, and why."""
