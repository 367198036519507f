"""Compile every Triton kernel ahead of time and report what it uses; no GPU is needed.

    python -m isoflop_kernels.aot [TARGET ... | all]

A target is an entry of `triton_config.TABLE`, sm_90 by default. Registers, stack and spills come
from the machine code that the compiler bundled with Triton makes, in the launches that the
operators use. The exit code is 1 when a kernel spills, uses atomics, or should use tensor cores and
does not. TRITON_INTERPRET must not be set: it decides, when kernels are decorated, whether they can
be compiled.
"""

# D width, C channels, K experts chosen per channel, N sub-keys per half

# mypy: disable-error-code="import-untyped, import-not-found"
# Triton has no types and may be absent.

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from isoflop_kernels import command, triton_config
from isoflop_kernels.gathered_linear import triton_kernels, triton_v2_kernels
from isoflop_kernels.gathered_linear.choice import groupable
from isoflop_kernels.product_key_topk.triton_kernels import pairs_kernel
from isoflop_kernels.product_key_topk.triton_op import MAX_CHOSEN

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# Element types as they come in training: half-precision tokens and tables, float32 in between.
POINTERS = {
    **dict.fromkeys(("p_x", "p_dy", "p_y", "p_w", "p_w_out", "p_score", "p_dscore"), "half"),
    **dict.fromkeys(("p_dw_in", "p_dw_out", "p_dw", "p_rows", "p_sim"), "half"),
    **dict.fromkeys(("p_h", "p_z", "p_dz", "p_dh", "p_weight", "p_partial"), "*fp32"),
    **dict.fromkeys(("p_idx", "p_start", "p_first_chunk", "p_slot", "p_row", "p_group"), "*i32"),
    **dict.fromkeys(("p_column", "p_first", "p_token"), "*i32"),
    **dict.fromkeys(("p_order", "p_pair"), "*i64"),
}
# v2 sorts choices by numbers half as long.
GROUPED = {"p_order": "*i32"}
# Sizes (D, K, N) that `main` and the tests compile: small, large, and rows too wide for one block.
SIZES = ((128, 8, 28), (1024, 8, 112), (2048, 1, 16))
# Arguments that the compiler is told to be divisible by 16, as it would find at a launch.
DIVISIBLE = {"D", "CHUNK"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """A kernel with the compile-time arguments and warps of one launch."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    num_warps: int
    element: str = "*bf16"
    tensor_cores: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What the machine code uses; `spills` are bytes of stack or AMD's count of spilled registers.

    `wide_loads` are loads of 16 bytes, `atomics` atomic instructions on global memory, `products`
    instructions of tensor cores, which only some kernels `need_products`.
    """

    name: str
    target: str
    registers: int
    spills: int
    local_accesses: int
    shared_bytes: int
    wide_loads: int
    atomics: int
    products: int
    need_products: bool

    @property
    def clean(self) -> bool:
        """Whether nothing spills, nothing is atomic, and tensor cores work where they should."""
        unwanted = self.spills + self.local_accesses + self.atomics
        return unwanted == 0 and (self.products > 0 or not self.need_products)


def builds(
    arch: str, width: int, num_chosen: int, num_keys: int, element: str = "*bf16"
) -> list[Build]:
    """Return every kernel as the operators launch it for these sizes.

    Those of v2 are among them where it exists: in half precision, for groups that its blocks hold.
    """
    gate: dict[str, Any] = {"ACTIVATION": "gelu_tanh", "GATE_ORDER": "act_then_gate"}
    both: dict[str, Any] = {"WITH_IN": True, "WITH_OUT": True}
    kernels = triton_kernels
    K: dict[str, Any] = {"K": num_chosen}
    gather = triton_config.gathers_whole_rows(arch, width)
    # The gradient of z: taken by the kernel itself, or read where rows are too wide for that.
    how = "gather" if gather else "load"
    launches = [
        ("dot", kernels.dot_kernel, triton_config.dot(arch, width, num_chosen), K | gate),
        ("combine", kernels.combine_kernel, triton_config.combine(arch, width, num_chosen), K),
        (
            "expert",
            kernels.expert_kernel,
            triton_config.expert(arch, width, gather=gather),
            gate | both | {"DZ": how},
        ),
        ("reduce", kernels.reduce_kernel, triton_config.reduce(arch, width), both),
        (
            "pairs",
            pairs_kernel,
            triton_config.pairs(arch, num_keys, num_chosen),
            K | {"RANKS": min(num_chosen + 1, num_keys)},
        ),
    ]
    if num_chosen > MAX_CHOSEN:
        launches.pop()
    if element != "*fp32" and groupable(num_keys**2, num_chosen):
        launches += _grouped(arch, width, num_chosen, num_keys, gate)
    found = []
    for name, kernel, launch, constants in launches:
        if name == "dot":
            constants = constants | {"WITH_Z": True}
        blocks = {
            block: getattr(launch, block)
            for block in ("BK", "BD", "BJ", "BN", "BM")
            if block in kernel.arg_names
        }
        found.append(
            Build(
                name=name,
                kernel=kernel,
                constants=blocks | constants,
                num_warps=launch.num_warps,
                element=element,
                tensor_cores="UPCAST" in constants,
            )
        )
    return found


def _grouped(
    arch: str, width: int, num_chosen: int, num_keys: int, gate: dict[str, Any]
) -> list[tuple[str, Any, triton_config.Launch, dict[str, Any]]]:
    """Name, kernel, launch and constants of v2's kernels; `reduce` on groups is another launch."""
    kernels, upcast = triton_v2_kernels, {"UPCAST": False}
    dot = triton_config.group_dot(arch, width, num_keys, num_chosen)
    table = triton_config.group_table(arch, width, num_keys)
    reduce = triton_config.group_reduce(arch, width * num_keys)
    both = {"WITH_IN": True, "WITH_OUT": True}
    constants = gate | upcast
    return [
        ("group_dot", kernels.group_dot_kernel, dot, constants | {"BACKWARD": False}),
        ("group_grad", kernels.group_dot_kernel, dot, constants | {"BACKWARD": True}),
        ("group_table", kernels.group_table_kernel, table, upcast | {"TABLE": 1}),
        ("group_sum", triton_kernels.reduce_kernel, reduce, both),
    ]


def compile_report(build: Build, arch: str) -> Report:
    """Compile one kernel for one target and read the resources off the machine code."""
    names = build.kernel.arg_names
    pointers = POINTERS | (GROUPED if build.tensor_cores else {})
    types = {n: build.element if t == "half" else t for n, t in pointers.items()}
    signature = {n: "constexpr" if n in build.constants else types.get(n, "i32") for n in names}
    hints = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if signature[n].startswith("*") or n in DIVISIBLE - build.constants.keys()
    }
    source = ASTSource(
        fn=build.kernel, signature=signature, constexprs=build.constants, attrs=hints
    )
    compiled = triton.compile(source, target=_target(arch), options={"num_warps": build.num_warps})
    read = _read_cubin if "cubin" in compiled.asm else _read_amdgcn
    return Report(
        name=build.name,
        target=arch,
        shared_bytes=compiled.metadata.shared,
        need_products=build.tensor_cores,
        **read(compiled.asm),
    )


def _target(arch: str) -> GPUTarget:
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return GPUTarget("hip", arch, 64)


def _read_cubin(asm: dict[str, Any]) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(asm["cubin"])
        usage, sass = (
            subprocess.run(
                [CUOBJDUMP, option, path], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump reported no resources: {usage[:200]}")
    return {
        "registers": int(found[1]),
        "spills": int(found[2]),
        "local_accesses": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "wide_loads": len(re.findall(r"\bLDG(?:STS)?\.E\.(?:\w+\.)*128\b", sass)),
        # REDUX, a reduction among the lanes of a warp, is none of them.
        "atomics": len(re.findall(r"\b(?:RED|REDG|ATOM|ATOMG)\b", sass)),
        # By generation: Ampere, Hopper, Blackwell.
        "products": len(re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", sass)),
    }


def _read_amdgcn(asm: dict[str, Any]) -> dict[str, int]:
    code = asm["amdgcn"]

    def count(field: str) -> int:
        found = re.search(rf"\.{field}:\s+(\d+)", code)
        if found is None:
            raise RuntimeError(f"the compiler reported no {field}")
        return int(found[1])

    return {
        "registers": count("vgpr_count"),
        "spills": count("vgpr_spill_count") + count("sgpr_spill_count"),
        "local_accesses": len(re.findall(r"\bscratch_(?:load|store)", code)),
        "wide_loads": len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", code)),
        "atomics": len(re.findall(r"\b(?:global|buffer|flat)_atomic", code)),
        "products": len(re.findall(r"\bv_mfma_", code)),
    }


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per kernel and target; 1 if any is not clean."""
    targets = parse(arguments)
    print(f"{'target':8}{'kernel':13}{'D':>6}{'K':>4}", end="")
    print("  registers  spills  shared  wide loads  atomics  products")
    clean = True
    for arch in targets:
        for width, num_chosen, num_keys in SIZES:
            for build in builds(arch, width, num_chosen, num_keys):
                report = compile_report(build, arch)
                clean &= report.clean
                print(
                    f"{arch:8}{report.name:13}{width:6}{num_chosen:4}{report.registers:11}"
                    f"{report.spills:8}{report.shared_bytes:8}{report.wide_loads:12}"
                    f"{report.atomics:9}{report.products:10}"
                )
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
