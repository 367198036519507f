"""The house as README and CONTRIBUTING draw it: sizes, directions of imports, folders."""

from __future__ import annotations

import ast
import fnmatch
import functools
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import grimp

from longest import SECONDS

REPOSITORY = Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
SOURCES = sorted(
    path
    for folder in ("isoflop", "kernels", "experiments", "slurm", "tests")
    for suffix in (".py", ".cpp", ".sh", ".js", ".css", ".html")
    for path in (REPOSITORY / folder).rglob(f"*{suffix}")
)

BASE = {
    "errors",
    "disk",
    "environ",
    "numbers",
    "files",
    "online",
    "resources",
    "tables",
    "texts",
    "pages",
    "plot_style",
    "plot_texts",
    "plot_ticks",
    "arrays",
    "recipe",
    "spec",
    "trainer",
    "units",
    "placement",
    "validate",
    "code_files",
    "code_folder",
}
"""What every part may import; of the project, these import only each other."""

MAY_IMPORT: dict[str, set[str]] = {
    "accounting": set(),
    "families": {"accounting", "kernels"},
    "study": {"accounting", "families"},
    "data": set(),
    "plan": {"accounting", "families", "study", "data"},
    "model": {"accounting", "families", "plan", "data", "kernels"},
    "train": {"accounting", "families", "plan", "data", "model", "kernels"},
    "ingest": set(),
    "launch": {"families", "study", "plan", "data", "train", "ingest"},
    "analysis": {"accounting", "study", "ingest"},
    "api": {"study", "plan", "launch", "ingest", "analysis"},
    "interpret": {"families", "plan", "data", "model", "train", "launch", "kernels"},
    "kernels": set(),
}
"""By part, besides itself. A plan names its data, a model is built from a run of a plan; cli and
gpu_report are on top and may import everything."""

EXCEPTIONS = {
    ("isoflop.families.*.module", "model"): "layers are drawn by the model's initialisers",
    ("isoflop.analysis.designs", "plan"): "the runs of a plan, and which of them share trunks",
    ("isoflop.analysis.refine*", "plan"): "proposes runs, which are plans",
}

WITHOUT_TORCH = (
    "isoflop.accounting*",
    "isoflop.plan*",
    "isoflop.study*",
    "isoflop.families.*.spec",
)


@functools.cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(
        "isoflop",
        "isoflop_kernels",
        include_external_packages=True,
        exclude_type_checking_imports=True,
        cache_dir=None,
    )


def imports() -> Iterator[tuple[str, str]]:
    """Pairs of modules of the project: the first imports the second, wherever in its text."""
    for module in sorted(graph().modules):
        if module.startswith("isoflop"):
            for imported in sorted(graph().find_modules_directly_imported_by(module)):
                if imported.startswith("isoflop"):
                    yield module, imported


def part_of(module: str) -> str:
    top, _, rest = module.partition(".")
    if top == "isoflop_kernels":
        return "kernels"
    name = rest.partition(".")[0]
    return name


def is_excepted(module: str, part: str) -> bool:
    return any(part == to and fnmatch.fnmatch(module, name) for name, to in EXCEPTIONS)


def test_imports_point_one_way() -> None:
    wrong = []
    for module, imported in imports():
        part, to = part_of(module), part_of(imported)
        allowed = BASE | {part, ""} | (MAY_IMPORT.get(part, set()) if part not in BASE else set())
        on_top = part in ("cli", "gpu_report", "__main__")
        if not (on_top or to in allowed or is_excepted(module, to)):
            wrong.append(f"{module} imports {imported}")
    assert wrong == []


def test_every_exception_is_needed() -> None:
    used = {(module, part_of(imported)) for module, imported in imports()}
    for name, to in EXCEPTIONS:
        assert any(to == part and fnmatch.fnmatch(module, name) for module, part in used), name


def test_no_module_imports_itself_by_way_of_others() -> None:
    needs: dict[str, set[str]] = {}
    for module, imported in imports():
        needs.setdefault(module, set()).add(imported)
    graphlib.TopologicalSorter(needs).prepare()


def test_plans_and_specs_never_import_torch() -> None:
    for module in graph().find_modules_that_directly_import("torch"):
        assert not any(fnmatch.fnmatch(module, name) for name in WITHOUT_TORCH), module


SMALL_LINES = 100

ONE_IMPORTER = {
    "isoflop.analysis": "the names that notebooks and other people's code import",
    "isoflop.plot_ticks": "a class of matplotlib's, which is imported when a figure is drawn",
    "isoflop.families.*.*": "a plug-in: a family, found by its folder",
    "isoflop.launch.slurm.outcome": "what submit returns, which the command line imports for types",
    "isoflop_kernels.*.reference": "a plug-in: an implementation, that of plain torch",
    "isoflop_kernels.*.cpp": "a plug-in: an implementation, compiled where it is asked for",
}
"""Modules of few lines that only one other imports, each with the reason why it stands alone."""


def test_a_small_module_with_one_importer_has_a_reason() -> None:
    found = set()
    for module in sorted(graph().modules):
        is_ours = module.startswith("isoflop")
        importers = graph().find_modules_that_directly_import(module)
        if is_ours and len(importers) == 1 and num_lines(module) <= SMALL_LINES:
            found.add(module)
    named = {name: fnmatch.filter(found, name) for name in ONE_IMPORTER}
    assert found == set().union(*named.values())
    assert all(named.values()), "every reason is needed"


def num_lines(module: str) -> int:
    part = "kernels" if module.startswith("isoflop_kernels") else ""
    path = REPOSITORY / part / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return len(file.read_text().splitlines())


def test_files_and_functions_are_short() -> None:
    long = [path for path in SOURCES if len(path.read_text().splitlines()) > MAX_FILE_LINES]
    assert long == []
    too_long = [
        f"{path}:{node.lineno} {node.name}"
        for path in SOURCES
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
        and not is_kernel(node)
    ]
    assert too_long == []


def test_nothing_is_unpickled() -> None:
    """Nothing in a folder of results is, whoever made it; submitit's jobs load what was sent."""
    loads = re.compile(
        r"import (c?[Pp]ickle|cloudpickle|dill|joblib|marshal|shelve)|(torch|np|numpy)\.load\("
        r"|read_pickle|allow_pickle=True|weights_only=False|yaml\.(unsafe_)?load\("
    )
    packages = (REPOSITORY / "isoflop", REPOSITORY / "kernels" / "isoflop_kernels")
    ours = [path for folder in packages for path in folder.rglob("*.py")]
    assert [path for path in ours if loads.search(path.read_text())] == []


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def folders(of: Path) -> set[str]:
    found = {path.name for path in of.iterdir() if path.is_dir() and any(path.glob("*.*"))}
    return {name for name in found if not name.startswith((".", "_")) and name not in MADE}


MADE = {"build", "dist", "corpora"}
"""Made by tools, or data."""


def test_the_layout_in_the_readme_is_that_of_the_folders() -> None:
    section = (REPOSITORY / "README.md").read_text().partition("\n## Layout\n")[2]
    block = section.partition("```\n")[2].partition("```")[0]
    named = set(re.findall(r"(?<![\w/])(\w+)/", block))
    assert named == folders(REPOSITORY) | folders(REPOSITORY / "isoflop")


def test_every_folder_says_what_lives_there() -> None:
    for name in folders(REPOSITORY) - {"isoflop"}:
        assert (REPOSITORY / name / "README.md").is_file(), name
    for name in folders(REPOSITORY / "isoflop"):
        folder = REPOSITORY / "isoflop" / name
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring or (folder / "README.md").is_file(), name


def test_the_slow_tests_called_long_are_there() -> None:
    for name in SECONDS:
        path, _, test = name.partition("::")
        found = REPOSITORY / "tests" / path
        assert found.exists(), name
        assert not test or test.partition("[")[0] in found.read_text(), name
