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
arch, element, first, last = sys.argv[1:]
reports = [
    dataclasses.asdict(aot.compile_report(build, arch)) | {"size": size}
    for size in aot.SIZES[int(first) : int(last)]
    for build in aot.builds(arch, *size, element)
]
print(json.dumps(reports))
"""
KERNELS = {"dot", "combine", "expert", "reduce", "pairs"}
PRODUCTS = {"group_dot", "group_grad", "group_table"}
GROUPED = PRODUCTS | {"group_sum"}
# Rows of tables and tokens come 16 bytes at a time; a row of similarities may start anywhere.
WIDE = (KERNELS | GROUPED) - {"pairs"}
SHARED_LIMIT = 48 * 1024
# Products stage their blocks: NVIDIA's chips have 163 KiB for a program or more, AMD's 64.
STAGED_LIMIT = {"sm": 99 * 1024, "gf": 64 * 1024}


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "element", "sizes"),
    [
        # Every size on one chip of each vendor; every target and element at one size.
        *((arch, "*bf16", "0:3") for arch in ("sm_90", "gfx942")),
        *((arch, "*bf16", "1:2") for arch in ("sm_80", "sm_100", "gfx90a")),
        *((arch, element, "1:2") for arch in ("sm_90", "gfx942") for element in ("*fp16", "*fp32")),
    ],
)
def test_every_kernel_compiles_cleanly_for_every_target(arch, element, sizes, tmp_path):
    reports = json.loads(compiled(tmp_path, REPORT, arch, element, *sizes.split(":")))
    grouped = GROUPED if element != "*fp32" else set()
    assert {report["name"] for report in reports} == KERNELS | grouped
    for report in reports:
        assert report["spills"] == report["local_accesses"] == report["atomics"] == 0, report
        product = report["name"] in PRODUCTS
        assert (report["products"] > 0) == report["need_products"] == product, report
        assert 0 < report["registers"] <= (255 if product else 128), report
        limit = STAGED_LIMIT[arch[:2]] if product else SHARED_LIMIT
        assert report["shared_bytes"] <= limit, report
        # AMD's compiler reads the few numbers of a narrow `reduce` in smaller pieces.
        if report["name"] in WIDE and (arch.startswith("sm_") or report["name"] != "reduce"):
            assert report["wide_loads"] > 0, report


@pytest.mark.slow
def test_the_largest_blocks_and_arguments_equal_to_one_compile_cleanly(tmp_path):
    """A launch makes an integer argument of 1 a constant, unless the kernel forbids it."""
    code = """
import dataclasses
from isoflop_kernels import aot
cases = ((384, 16, 1024), (256, 64, 64), (1024, 512, 512), (1024, 16, 128), (16, 3, 5), (1, 1, 1))
for sizes in cases:
    for build in aot.builds("sm_90", *sizes):
        names = {"C", "CK", "R", "TABLE_ROWS", "G"} | ({"D", "N", "NK"} if sizes[0] == 1 else set())
        names -= set(build.kernel.do_not_specialize)
        ones = dict.fromkeys(names & set(build.kernel.arg_names), 1)
        for constants in ({}, ones):
            one = dataclasses.replace(build, constants=build.constants | constants)
            report = aot.compile_report(one, "sm_90")
            assert report.clean, (sizes, constants, report)
"""
    compiled(tmp_path, code)


@pytest.mark.slow
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


@pytest.mark.slow
def test_products_without_tensor_cores_are_caught(tmp_path):
    """Negative control: the same kernel on float32 elements, whose products are exact."""
    code = """
import dataclasses
from isoflop_kernels import aot
build = next(b for b in aot.builds("sm_90", 128, 8, 28) if b.name == "group_dot")
report = aot.compile_report(dataclasses.replace(build, element="*fp32"), "sm_90")
assert report.products == 0 and report.spills == 0 and not report.clean, report
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


@pytest.mark.slow
def test_the_command_names_its_targets(tmp_path):
    code = "from isoflop_kernels import aot; print(aot.parse(sys.argv[1:]))"
    assert compiled(tmp_path, f"import sys; {code}") == "['sm_90']\n"
    assert "'sm_80'" in compiled(tmp_path, f"import sys; {code}", "all")
    result = subprocess.run(
        [sys.executable, "-m", "isoflop_kernels.aot", "sm_1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("isoflop_kernels.aot: target = 'sm_1': must be of sm_80")
