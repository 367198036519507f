"""What the machine code of a compiled kernel uses, as a whole and in each of its loops.

NVIDIA's comes as a cubin, read by the cuobjdump that is bundled with Triton; AMD's as text.
"""

# mypy: disable-error-code="import-untyped, import-not-found"
# Triton has no types and may be absent.

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Patterns:
    """How the instructions that are counted are spelled."""

    barriers: str
    # Of shared memory, AMD's LDS.
    shared_loads: str
    shared_stores: str
    # Of global memory; `wide_loads` those of 16 bytes.
    loads: str
    wide_loads: str
    # Of stack, where registers are spilled.
    local_accesses: str
    atomics: str
    products: str


NVIDIA = Patterns(
    barriers=r"\bBAR\b",
    shared_loads=r"\bLDSM?\b",
    shared_stores=r"\b(?:STSM?|LDGSTS)\b",
    loads=r"\bLDG(?:STS)?\b",
    wide_loads=r"\bLDG(?:STS)?\.E\.(?:\w+\.)*128\b",
    local_accesses=r"\b(?:LDL|STL)\b",
    # REDUX, a reduction among the lanes of a warp, is none of them.
    atomics=r"\b(?:RED|REDG|ATOM|ATOMG)\b",
    # By generation: Ampere, Hopper, Blackwell.
    products=r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b",
)
AMD = Patterns(
    barriers=r"\bs_barrier\b",
    shared_loads=r"\bds_(?:read|load)",
    shared_stores=r"\bds_(?:write|store)",
    loads=r"\b(?:global|buffer|flat)_load",
    wide_loads=r"\b(?:global|buffer)_load_dwordx4\b",
    local_accesses=r"\bscratch_(?:load|store)",
    atomics=r"\b(?:global|buffer|flat)_atomic",
    products=r"\bv_mfma_",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Loop:
    """Instructions between a backward branch and its target, both included."""

    instructions: int
    barriers: int
    shared_loads: int
    shared_stores: int
    loads: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MachineCode:
    """What the code uses; `spills` are bytes of stack or AMD's count of spilled registers.

    `wide_loads` are loads of 16 bytes, `atomics` atomic instructions on global memory, `products`
    instructions of tensor cores. `hot` is the loop that loads most from global memory, the
    innermost of several; None where none loads.
    """

    registers: int
    spills: int
    local_accesses: int
    wide_loads: int
    atomics: int
    products: int
    hot: Loop | None


def read(asm: dict[str, Any]) -> MachineCode:
    """Return what `triton.compile` made, read off `asm` of its result.

    Raises:
        RuntimeError: the compiler's tools reported no resources.
    """
    if "cubin" in asm:
        return _read_cubin(asm["cubin"])
    code = asm["amdgcn"]
    spills = _field(code, "vgpr_spill_count") + _field(code, "sgpr_spill_count")
    return _counted(_amd_instructions(code), AMD, _field(code, "vgpr_count"), spills)


def _read_cubin(cubin: bytes) -> MachineCode:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.run(
                [CUOBJDUMP, option, path], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump reported no resources: {usage[:200]}")
    return _counted(nvidia_instructions(sass), NVIDIA, int(found[1]), int(found[2]))


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """Text of an instruction, and the place of that which it may jump to."""

    text: str
    target: int | None


def nvidia_instructions(sass: str) -> list[Instruction]:
    """Return the instructions of cuobjdump's listing, where an address stands before each."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", sass)
    place = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    found = []
    for _, text in lines:
        jump = re.search(r"\bBRA(?:\.\w+)*\s.*?0x([0-9a-f]+)", text)
        found.append(Instruction(text, place.get(int(jump[1], 16)) if jump else None))
    return found


def _amd_instructions(code: str) -> list[Instruction]:
    texts: list[str] = []
    place: dict[str, int] = {}
    for line in code.splitlines():
        label = re.match(r"(\.L\w+):", line)
        if label:
            place[label[1]] = len(texts)
        elif re.match(r"\s+[a-z]\w*_", line):
            texts.append(line.strip())
    jumps = [re.search(r"\bs_c?branch\w*\s+(\.L\w+)", text) for text in texts]
    targets = [place.get(jump[1]) if jump else None for jump in jumps]
    return [Instruction(text, target) for text, target in zip(texts, targets, strict=True)]


def loops_of(instructions: list[Instruction], patterns: Patterns) -> list[Loop]:
    """Return every loop, in the order in which they end; the jump to itself at the end is none."""
    found = []
    for end, instruction in enumerate(instructions):
        begin = instruction.target
        if begin is not None and begin < end:
            texts = [one.text for one in instructions[begin : end + 1]]
            found.append(
                Loop(
                    instructions=len(texts),
                    barriers=_count(texts, patterns.barriers),
                    shared_loads=_count(texts, patterns.shared_loads),
                    shared_stores=_count(texts, patterns.shared_stores),
                    loads=_count(texts, patterns.loads),
                )
            )
    return found


def _counted(
    instructions: list[Instruction], patterns: Patterns, registers: int, spills: int
) -> MachineCode:
    texts = [one.text for one in instructions]
    loops = [loop for loop in loops_of(instructions, patterns) if loop.loads]
    return MachineCode(
        registers=registers,
        spills=spills,
        local_accesses=_count(texts, patterns.local_accesses),
        wide_loads=_count(texts, patterns.wide_loads),
        atomics=_count(texts, patterns.atomics),
        products=_count(texts, patterns.products),
        hot=max(loops, key=lambda loop: (loop.loads, -loop.instructions), default=None),
    )


def _count(texts: list[str], pattern: str) -> int:
    return sum(bool(re.search(pattern, text)) for text in texts)


def _field(code: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", code)
    if found is None:
        raise RuntimeError(f"the compiler reported no {name}")
    return int(found[1])
