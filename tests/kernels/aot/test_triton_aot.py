"""Machine code of the Triton kernels, compiled without a GPU, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

REPORT = """
import dataclasses, json, sys
from isoflop_kernels import aot
arch, element = sys.argv[1:]
reports = [
    dataclasses.asdict(aot.compile_report(build, arch)) | {"size": size}
    for size in aot.SIZES
    for build in aot.builds(arch, *size, element)
]
print(json.dumps(reports))
"""
KERNELS = {"dot", "combine", "expert", "reduce", "pairs"}
# Rows of tables and tokens come 16 bytes at a time; a row of similarities may start anywhere.
WIDE = KERNELS - {"pairs"}
SHARED_LIMIT = 48 * 1024


def compiled(tmp_path, code: str, *args: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def check_target(tmp_path, arch: str, element: str) -> None:
    reports = json.loads(compiled(tmp_path, REPORT, arch, element))
    assert {report["name"] for report in reports} == KERNELS
    for report in reports:
        assert report["spills"] == report["local_accesses"] == report["atomics"] == 0, report
        assert 0 < report["registers"] <= 128, report
        assert report["shared_bytes"] <= SHARED_LIMIT, report
        # AMD's compiler reads the few numbers of a narrow `reduce` in smaller pieces.
        if report["name"] in WIDE and (arch.startswith("sm_") or report["name"] != "reduce"):
            assert report["wide_loads"] > 0, report


def test_every_kernel_compiles_cleanly_for_sm_90(tmp_path):
    check_target(tmp_path, "sm_90", "*bf16")


@pytest.mark.slow
@pytest.mark.parametrize("element", ["*bf16", "*fp16", "*fp32"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942", "gfx90a"])
def test_every_kernel_compiles_cleanly_for_every_target(arch, element, tmp_path):
    check_target(tmp_path, arch, element)


@pytest.mark.slow
def test_the_largest_blocks_and_arguments_equal_to_one_compile_cleanly(tmp_path):
    """A launch turns every integer argument that is 1 into a constant of the kernel."""
    code = """
import dataclasses
from isoflop_kernels import aot
for sizes in ((384, 16, 1024), (256, 64, 64), (1024, 512, 512), (16, 3, 5), (1, 1, 1)):
    for build in aot.builds("sm_90", *sizes):
        names = {"C", "CK", "R", "TABLE_ROWS"} | ({"D", "N"} if sizes[0] == 1 else set())
        ones = dict.fromkeys(names & set(build.kernel.arg_names), 1)
        for constants in ({}, ones):
            one = dataclasses.replace(build, constants=build.constants | constants)
            report = aot.compile_report(one, "sm_90")
            assert report.clean, (sizes, constants, report)
"""
    compiled(tmp_path, code)


def test_a_spilling_configuration_is_caught(tmp_path):
    """Negative control: the expert kernel with blocks far too large for one warp."""
    code = """
import dataclasses
from isoflop_kernels import aot
build = next(b for b in aot.builds("sm_90", 1024, 8, 16) if b.name == "expert")
bad = dataclasses.replace(build, num_warps=1, constants=build.constants | {"BJ": 8})
report = aot.compile_report(bad, "sm_90")
assert report.spills > 0 and report.local_accesses > 0 and not report.clean, report
"""
    compiled(tmp_path, code)


def test_an_atomic_is_caught_and_a_reduction_among_lanes_is_none(tmp_path):
    module = tmp_path / "counted.py"
    module.write_text("""
import triton
import triton.language as tl

@triton.jit
def add(p_x, p_sum, BN: tl.constexpr):
    tl.atomic_add(p_sum, tl.max(tl.load(p_x + tl.arange(0, BN)), 0))
""")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import counted
from isoflop_kernels import aot
aot.POINTERS |= {{"p_x": "*i32", "p_sum": "*i32"}}
build = aot.Build(name="add", kernel=counted.add, constants={{"BN": 128}}, num_warps=1)
report = aot.compile_report(build, "sm_90")
assert report.atomics == 1, report
"""
    compiled(tmp_path, code)
