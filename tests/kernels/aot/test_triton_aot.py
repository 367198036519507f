"""Machine code of the Triton kernels, compiled without a GPU, in a process of its own."""

from __future__ import annotations

import dataclasses
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
arch, *titles = sys.argv[1:]
done, reports = [], []
for title in titles or aot.SHIPPED:
    for launch in aot.launches(arch, aot.SHIPPED[title]):
        if launch not in done:
            done.append(launch)
            reports.append({"title": title} | dataclasses.asdict(aot.compile_report(launch, arch)))
print(json.dumps(reports))
"""
KERNELS = {"softmax_gradient", "dot", "combine", "expert", "reduce", "pairs"}
PRODUCTS = {"group_dot", "group_dot_grad", "group_table"}
# Rows of tables and tokens come 16 bytes at a time; a row of similarities may start anywhere.
WIDE = (KERNELS | PRODUCTS) - {"pairs"}
SHARED_LIMIT = 48 * 1024
# Products stage their blocks: NVIDIA's chips have 163 KiB for a program or more, AMD's 64.
STAGED_LIMIT = {"sm": 99 * 1024, "gf": 64 * 1024}
TRAINED = ("scale 6", "scale 6 single", "scale 6 mixed", "scale 8 v2")


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """Registers of the kernel; barriers, loads and stores of shared memory in its loop over rows.

    Rows wait at each barrier, and registers beyond 64 leave half of the warps that hide it.
    """

    registers: int
    barriers: int
    shared_loads: int
    shared_stores: int


# What the loops had before sums over choices moved behind them: 13 barriers, 36 loads and stores
# in `expert`. The dot product of a row alone crosses its four warps.
NVIDIA_LOOPS = {
    "expert": Limit(64, 3, 2, 2),
    "combine": Limit(64, 0, 0, 0),
    "dot": Limit(64, 3, 9, 9),
}
# Float32 tokens beside rows of two bytes are laid out otherwise, and change places.
MIXED = {"dot": Limit(96, 5, 11, 11)}
BLACKWELL = {"dot": Limit(68, 3, 9, 9)}


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
    ("arch", "titles"),
    # Every size on one chip, those of training on every target.
    [("sm_90", ()), *((arch, TRAINED) for arch in ("sm_80", "sm_100", "gfx942", "gfx90a"))],
)
def test_every_kernel_compiles_cleanly_for_every_target(arch, titles, tmp_path):
    reports = json.loads(compiled(tmp_path, REPORT, arch, *titles))
    assert {report["name"] for report in reports} == KERNELS | PRODUCTS
    for report in reports:
        code = report["code"]
        assert code["spills"] == code["local_accesses"] == code["atomics"] == 0, report
        product = report["name"] in PRODUCTS
        assert (code["products"] > 0) == report["need_products"] == product, report
        assert 0 < code["registers"] <= (255 if product else 128), report
        limit = STAGED_LIMIT[arch[:2]] if product else SHARED_LIMIT
        assert report["shared_bytes"] <= limit, report
        # AMD's compiler reads the few numbers of a narrow `reduce` in smaller pieces.
        if report["name"] in WIDE and (arch.startswith("sm_") or report["name"] != "reduce"):
            assert code["wide_loads"] > 0, report
        if arch.startswith("sm_") and report["title"].startswith("scale 6"):
            check_loop(report)


def check_loop(report) -> None:
    limits = NVIDIA_LOOPS | (BLACKWELL if report["target"] == "sm_100" else {})
    limits |= MIXED if report["title"] == "scale 6 mixed" else {}
    if report["name"] in limits:
        limit, hot = dataclasses.asdict(limits[report["name"]]), report["code"]["hot"]
        assert report["code"]["registers"] <= limit.pop("registers"), report
        assert all(hot[name] <= most for name, most in limit.items()), report


@pytest.mark.slow
def test_the_largest_blocks_and_arguments_equal_to_one_compile_cleanly(tmp_path):
    """A launch makes an integer argument of 1 a constant, unless the kernel forbids it."""
    code = """
import dataclasses
from isoflop_kernels import aot
cases = ((384, 16, 1024), (256, 64, 64), (1024, 512, 512), (1024, 16, 128), (16, 3, 5), (1, 1, 1))
done = []
for width, num_chosen, num_keys in cases:
    sizes = {"width": width, "num_chosen": num_chosen, "num_keys": num_keys}
    for version in ("v1", "v2"):
        for more in ({}, {"num_channels": 1, "shared": True, "num_tokens": 1}):
            call = aot.Call(**sizes, **more, version=version, **aot._GELU)
            for launch in aot.launches("sm_90", call):
                if launch not in done:
                    done.append(launch)
                    report = aot.compile_report(launch, "sm_90")
                    assert report.clean, (call, report)
"""
    compiled(tmp_path, code)


@pytest.mark.slow
def test_a_spilling_configuration_is_caught(tmp_path):
    """Negative control: the expert kernel with blocks far too large for one warp."""
    code = """
import dataclasses
from isoflop_kernels import aot
call = aot.SHIPPED["scale 6"]
launch = next(one for one in aot.launches("sm_90", call) if one.name == "expert")
bad = dataclasses.replace(launch, num_warps=1, constants=launch.constants | {"BJ": 8})
report = aot.compile_report(bad, "sm_90")
assert report.code.spills > 0 and report.code.local_accesses > 0 and not report.clean, report
"""
    compiled(tmp_path, code)


@pytest.mark.slow
def test_products_without_tensor_cores_are_caught(tmp_path):
    """Negative control: the same kernel on float32 elements, whose products are exact."""
    code = """
import dataclasses
from isoflop_kernels import aot
call = dataclasses.replace(aot.SHIPPED["small v2"], **aot._SINGLE)
launch = next(one for one in aot.launches("sm_90", call) if one.name == "group_dot")
report = aot.compile_report(launch, "sm_90")
assert report.code.products == 0 and report.code.spills == 0 and not report.clean, report
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
import counted, torch
from isoflop_kernels import aot
launch = aot.Launch(
    name="add",
    module="counted",
    function="add",
    arguments={{"p_x": torch.int32, "p_sum": torch.int32}},
    constants={{"BN": 128}},
    num_warps=1,
)
report = aot.compile_report(launch, "sm_90")
assert report.code.atomics == 1, report
"""
    compiled(tmp_path, code)


@pytest.mark.slow
def test_what_is_compiled_ahead_is_what_a_launch_looks_for(tmp_path):
    """The JIT itself, told of a GPU that is not there, adds nothing to the cache but one kernel.

    Of all launches the first is left out, so that the test sees what is missing.
    """
    code = """
import dataclasses, os
from unittest import mock
from torch import Tensor
from triton.runtime import driver
from triton.runtime.jit import JITFunction, MockTensor
from isoflop_kernels import aot, launches

jit, launched = JITFunction.run, []
def run(kernel, *args, grid, warmup, **named):
    launched.append(kernel)
    args = [MockTensor(arg.dtype) if isinstance(arg, Tensor) else arg for arg in args]
    return jit(kernel, *args, grid=grid, warmup=True, **named)

entries = lambda: len(os.listdir(os.environ["TRITON_CACHE_DIR"]))
call = dataclasses.replace(aot.SHIPPED["small"], num_channels=1)
aot.compile_all("sm_90", aot.launches("sm_90", call)[1:], num_processes=2)
before = entries()
driver.set_active(aot.absent_gpu("sm_90"))
with mock.patch.object(JITFunction, "run", run):
    launches.run(call)
print(len(set(launched)), entries() - before)
"""
    assert compiled(tmp_path, code) == "6 1\n"


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
