"""Compile every Triton kernel ahead of time and report what it uses; no GPU is needed.

    python -m isoflop_kernels.aot [TARGET ... | all]

A target is an entry of `triton_config.TABLE`, sm_90 by default. Registers, stack and spills come
from the machine code that the compiler bundled with Triton makes, in the launches that the
operators use; barriers and accesses of shared memory are those of the loop that streams rows. The
exit code is 1 when a kernel spills, uses atomics, or should use tensor cores and does not.
TRITON_INTERPRET must not be set: it decides, when kernels are decorated, whether they can be
compiled.
"""

# mypy: disable-error-code="import-untyped, import-not-found"
# Triton has no types and may be absent.

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import sys
import types
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import MockTensor

from isoflop_kernels import command, machine_code, triton_config
from isoflop_kernels.launches import Call, Launch, launches
from isoflop_kernels.machine_code import MachineCode

# What `main` and the tests compile: by name, types and sizes that training comes with, small and
# large ones, and rows too wide for one block.
_GELU: dict[str, Any] = {"activation": "gelu_tanh", "gate_order": "act_then_gate"}
_SINGLE: dict[str, Any] = dict.fromkeys(("tokens", "scores", "rows"), torch.float32)
_SMALL = Call(width=128, num_chosen=8, num_keys=28, version="v1", **_GELU)
_SCALE_6 = Call(width=768, num_chosen=8, num_keys=88, version="v1")
SHIPPED = {
    "small": dataclasses.replace(_SMALL, shared=True),
    "small v2": dataclasses.replace(_SMALL, version="v2"),
    "scale 6": _SCALE_6,
    "scale 6 summed": dataclasses.replace(_SCALE_6, sums=True),
    "scale 6 single": dataclasses.replace(_SCALE_6, **_SINGLE),
    "scale 6 mixed": dataclasses.replace(_SCALE_6, tokens=torch.float32),
    "scale 8 v2": Call(width=1024, num_chosen=8, num_keys=112, version="v2", sums=True),
    "wide": Call(width=2048, num_chosen=1, num_keys=16, version="v1", **_GELU),
}
# Kernels whose products take tensor cores.
PRODUCTS = {"group_dot", "group_dot_grad", "group_table"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a kernel uses on a target; instructions of tensor cores only some `need_products`."""

    name: str
    target: str
    shared_bytes: int
    need_products: bool
    code: MachineCode

    @property
    def clean(self) -> bool:
        """Whether nothing spills, nothing is atomic, and tensor cores work where they should."""
        unwanted = self.code.spills + self.code.local_accesses + self.code.atomics
        return unwanted == 0 and (self.code.products > 0 or not self.need_products)


def compile_report(launch: Launch, arch: str) -> Report:
    """Compile one kernel for one target and read the resources off the machine code."""
    compiled = compiled_kernel(launch, arch)
    return Report(
        name=launch.name,
        target=arch,
        shared_bytes=compiled.metadata.shared,
        need_products=launch.name in PRODUCTS,
        code=machine_code.read(compiled.asm),
    )


def compiled_kernel(launch: Launch, arch: str) -> Any:
    """Compile a kernel as a launch on a GPU would, into Triton's cache, and return what came."""
    arguments = [
        value if isinstance(value, int) else MockTensor(value)
        for value in launch.arguments.values()
    ]
    with mock.patch.object(type(driver), "active", absent_gpu(arch)):
        return launch.kernel.warmup(
            *arguments, grid=(1,), num_warps=launch.num_warps, **launch.constants
        )


def absent_gpu(arch: str) -> Any:
    """Return what Triton asks of a driver before it compiles, answered for an architecture."""
    nvidia = arch.startswith("sm_")
    target = (
        GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
        if nvidia
        else GPUTarget("hip", arch, 64)
    )
    return types.SimpleNamespace(
        # Names the JIT's own store of what is compiled, which is never launched from.
        get_current_device=lambda: f"absent {arch}",
        get_current_stream=lambda device: 0,
        get_current_target=lambda: target,
    )


def compile_all(arch: str, wanted: Sequence[Launch], num_processes: int) -> None:
    """Compile launches beside each other, into the cache where the launches will find them.

    AMD's compiler is told less here than at a launch, which may then compile again.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_processes, mp_context=spawn) as pool:
        for done in [pool.submit(_compile, launch, arch) for launch in wanted]:
            done.result()


def _compile(launch: Launch, arch: str) -> None:
    compiled_kernel(launch, arch)


def parse(arguments: Sequence[str] | None) -> list[str]:
    """Return the architectures to compile for; exits with 2 and one line if one is not known."""
    parser = command.Parser(prog="isoflop_kernels.aot", description=(__doc__ or "").splitlines()[0])
    known = ", ".join(triton_config.TABLE)
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help=f"of {known}; all: every one of them (default: {triton_config.DEFAULT})",
    )
    targets: list[str] = parser.parse_args(arguments).targets or [triton_config.DEFAULT]
    targets = list(triton_config.TABLE) if targets == ["all"] else targets
    for target in targets:
        if target not in triton_config.TABLE:
            parser.error(f"target = {target!r}: must be of {known}, or all")
    return targets


def _line(title: str, report: Report) -> str:
    code = report.code
    line = (
        f"{report.target:8}{title:16}{report.name:15}"
        f"{code.registers:11}{code.spills:8}{report.shared_bytes:8}{code.wide_loads:12}"
        f"{code.atomics:9}{code.products:10}"
    )
    if code.hot is not None:
        hot = code.hot
        line += f"{hot.instructions:20}{hot.barriers:10}{hot.shared_loads:5}{hot.shared_stores:5}"
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per kernel and target; 1 if any is not clean."""
    targets = parse(arguments)
    print(f"{'target':8}{'shipped':16}{'kernel':15}", end="")
    print("  registers  spills  shared  wide loads  atomics  products", end="")
    print("  loop: instructions  barriers  LDS  STS")
    clean = True
    for arch in targets:
        wanted = [(title, one) for title, call in SHIPPED.items() for one in launches(arch, call)]
        compile_all(arch, [launch for _, launch in wanted], os.cpu_count() or 1)
        for title, launch in wanted:
            report = compile_report(launch, arch)
            clean &= report.clean
            print(_line(title, report), flush=True)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
