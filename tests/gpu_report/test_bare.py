"""The command where nothing is installed but torch, Triton and numpy, and what those need."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.gpu_report.jobs import SHARES

REPOSITORY = Path(__file__).resolve().parents[2]
# The parts of a step, in the module that imports torch.
PARTS = {"attention", "experts", "router", "head", "elementwise", "optimizer", "other", "overhead"}
# What torch brings, and the two packages of the project.
HAS = (
    *("torch", "torchgen", "functorch", "triton", "numpy", "typing_extensions", "sympy", "mpmath"),
    *("jinja2", "markupsafe", "networkx", "filelock", "fsspec", "setuptools", "isoflop"),
    "isoflop_kernels",
)
HOOK = """
import os, sys
HAS = set(os.environ["BARE_HAS"].split())
class Bare:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)  # what finds versions of packages
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in HAS or top in sys.stdlib_module_names or top.startswith("_"):
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Bare(finder) for finder in sys.meta_path]
"""


def bare(tmp_path: Path, has=HAS) -> dict[str, str]:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    path = [str(tmp_path / "hook"), str(REPOSITORY), str(REPOSITORY / "kernels")]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(path),
        "BARE_HAS": " ".join(has),
    } | threads


PREDICTS = """
import isoflop.gpu_report.__main__
from isoflop.gpu_report.profiles import load_profile
from isoflop.plan.estimate.memory import choose_placement, model_shape
from isoflop.plan.estimate.time import estimate_step
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
recipe = get_recipe("paper-v1")
shape = recipe.shape(6)
spec = RunSpec(family="sgatlin", config=dict(recipe.config("sgatlin", 6)), d_model=shape.d_model,
    n_layers=shape.n_layers, n_heads=shape.n_heads, vocab_size=50258, seq_len=2048, batch_size=16,
    steps=1000, data_id="", tokenizer_hash="", seed=0, recipe=recipe.name, precision="bf16")
hardware = load_profile("h200")
placed = choose_placement(spec, hardware, 1)
print(estimate_step(model_shape(spec), hardware, placed).total_s)
"""


def test_plans_of_the_report_and_its_predictions_need_the_standard_library_alone(tmp_path):
    """And typing_extensions, which torch has; the parent process imports no torch."""
    has = ("isoflop", "isoflop_kernels", "typing_extensions")
    command = [sys.executable, "-c", PREDICTS]
    done = subprocess.run(command, env=bare(tmp_path, has), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


def test_nothing_else_is_imported_at_module_level():
    """Found by reading, which is quicker than to start a process that imports torch."""
    wanted = {"isoflop.gpu_report.__main__", "isoflop.gpu_report.worker"}
    outside: dict[str, str] = {}
    seen: set[str] = set()
    while wanted:
        module = wanted.pop()
        seen.add(module)
        for name in imported_at_once(module):
            top = name.partition(".")[0]
            if top in ("isoflop", "isoflop_kernels"):
                wanted |= {each for each in with_packages(name) if source(each)} - seen
            elif top not in HAS and top not in sys.stdlib_module_names:
                outside[top] = module
    assert outside == {}
    assert "isoflop.train.step" in seen
    assert "isoflop_kernels.dispatch" in seen


def source(module: str) -> Path | None:
    root = REPOSITORY / "kernels" if module.startswith("isoflop_kernels") else REPOSITORY
    path = root / module.replace(".", "/")
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found[0] if found else None


def with_packages(module: str) -> set[str]:
    """A module, and the packages around it, which are imported first."""
    parts = module.split(".")
    return {".".join(parts[:number]) for number in range(1, len(parts) + 1)}


def imported_at_once(module: str) -> set[str]:
    """What a module imports when it is imported: not in functions, nor for types alone."""
    file = source(module)
    assert file is not None
    found: set[str] = set()
    left = list(ast.parse(file.read_text()).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            left += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


@pytest.mark.slow
def test_the_whole_command_is_rehearsed(tmp_path):
    """On the CPU, interpreted, without HOME, from a folder that is not the checkout."""
    command = [sys.executable, "-m", "isoflop.gpu_report", "--device", "cpu", "--out", "out"]
    done = subprocess.run(
        [*command, "--budget-s", "240"],
        env=bare(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    text = (tmp_path / "out" / "report.md").read_text()
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{text}"
    assert "Complete: all of it ran and nothing failed" in text
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    by_stage = {stage: [row for row in rows if row["stage"] == stage] for stage in SHARES}
    assert all(by_stage.values())
    for stage in ("kernels", "steps"):
        ratios = [row for row in by_stage[stage] if row["predicted"] and row["measured"]]
        assert len(ratios) > 9
    assert {row["what"] for row in by_stage["steps"]} == {"step", *PARTS}
    assert any(row["outcome"] == "passed" for row in by_stage["losses"])
