"""Runs the tests of `triton/` in Triton's interpreter, each file in a process that has it on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop_kernels import implementation

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "triton"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_in_the_interpreter(name):
    result = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
            str(FOLDER / f"{name}.py"),
        ],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


def test_triton_is_the_default_on_gpus(monkeypatch):
    monkeypatch.delenv("ISOFLOP_KERNELS", raising=False)
    assert implementation("cuda") == "triton"
    monkeypatch.setenv("ISOFLOP_KERNELS", "bag")
    assert implementation("cuda") == "bag"


def test_without_triton_gpus_take_the_default_and_asking_for_it_says_so():
    code = """
import sys
sys.modules["triton"] = None
from isoflop_kernels import implementation, use_implementation
print(implementation("cuda") == implementation())
try:
    use_implementation("triton").__enter__()
except ValueError as error:
    print(error)
"""
    environment = {k: v for k, v in os.environ.items() if k != "ISOFLOP_KERNELS"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.stdout.splitlines() == [
        "True",
        "use_implementation = 'triton' needs the package triton, which is not installed",
    ]


@pytest.mark.slow
def test_compiled_kernels_refuse_tensors_on_cpu():
    code = """
import torch, isoflop_kernels
for call in (
    lambda: isoflop_kernels.product_key_topk(torch.randn(2, 2, 1, 5), 2),
    lambda: isoflop_kernels.gathered_linear(
        torch.randn(2, 4), torch.zeros(2, 1, 2, dtype=torch.int32), torch.randn(2, 1, 2),
        torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    ),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"ISOFLOP_KERNELS": "triton"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("'triton' got tensors on cpu: must be on a GPU") == 2
