"""Time every implementation, measure its memory, and hold both against the machine's limits.

    python -m isoflop_kernels.bench [--scales 2,4,6] [--tokens N] [--out FILE.parquet|FILE.jsonl]

`gathered_linear` is compared with the eager gather (`reference`) and a dense layer of equal counted
FLOPs, `product_key_topk` with two `torch.topk`, `stable_topk` with one. On CPU everything runs in
one thread and the time is CPU time. The columns of the file are the fields of `rows.Row`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from isoflop_kernels import command
from isoflop_kernels.bench import table
from isoflop_kernels.bench.cases import MODES, RIVALS, SCALES, SMALL, scale
from isoflop_kernels.bench.measure import measure_machine
from isoflop_kernels.bench.suite import Setting, measure_shape
from isoflop_kernels.bench.table import Row, append_jsonl, write_parquet

# Tokens of one step at the paper's scales, and what a CPU does in seconds.
TOKENS = {"cpu": 2048, "cuda": 131072}
DEFAULT_SCALES = {"cpu": "2", "cuda": ",".join(map(str, SCALES))}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked options; exit with 2 and one line if one does not fit."""
    parser = command.Parser(prog="isoflop_kernels.bench", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", type=command.device_option, default=command.default_device())
    add(
        "--dtype",
        choices=command.DTYPES,
        help="of tokens and tables; float32 on CPU, else bfloat16",
    )
    add("--shapes", default=",".join(SMALL), help="small layers by name, or none: %(default)s")
    add("--scales", help="of the paper, 2 to 8, or none; 2 on CPU, all on a GPU")
    add("--tokens", type=int, help="of the scales; 2048 on CPU, 131072 on a GPU")
    add("--operators", default=",".join(RIVALS), help="%(default)s")
    add("--implementations", help="reference, bag, cpp, triton, triton-v1, triton-v2; all")
    add("--modes", default=",".join(MODES), help="%(default)s")
    add("--repeats", type=int, default=9, help="%(default)s; fewer, at least 3, of slow calls")
    add("--no-memory", action="store_true", help="do not measure peak memory")
    add("--bytes", action="store_true", help="only print the bytes of every kernel by the model")
    add("--out", type=Path, metavar="FILE", help=".parquet at the end, or .jsonl as rows are found")
    options = parser.parse_args(arguments)
    kind = options.device.type
    options.dtype = command.DTYPES[options.dtype or DTYPES[kind]]
    tokens = TOKENS[kind] if options.tokens is None else options.tokens
    if min(tokens, options.repeats) < 1:
        parser.error("--tokens and --repeats: must be at least 1")
    scales = DEFAULT_SCALES[kind] if options.scales is None else options.scales
    known = sorted({name for operator in RIVALS for name in command.contenders(operator)})
    options.operators = _names(parser, "--operators", options.operators, RIVALS)
    options.modes = _names(parser, "--modes", options.modes, MODES)
    options.implementations = _names(
        parser, "--implementations", options.implementations or ",".join(known), known
    )
    small = _names(parser, "--shapes", options.shapes, SMALL)
    numbers = _names(parser, "--scales", scales, [str(number) for number in SCALES])
    options.shapes = [SMALL[name] for name in small]
    options.shapes += [scale(int(number), tokens) for number in numbers]
    _check_output(parser, options.out)
    return options


def _names(parser: command.Parser, option: str, text: str, allowed: Collection[str]) -> list[str]:
    names = [] if text == "none" else command.comma_list(text)
    for name in names:
        if name not in allowed:
            parser.error(f"{option} {name}: must be of {', '.join(allowed)}")
    return names


def _check_output(parser: command.Parser, path: Path | None) -> None:
    """Refuse a file that cannot be written before minutes are spent."""
    if path is None:
        return
    if path.suffix not in (".parquet", ".jsonl"):
        parser.error(f"--out {path}: must end in .parquet or .jsonl")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        parser.error(
            "--out: .parquet needs the package pyarrow, which is not installed; .jsonl does not"
        )
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        parser.error(f"--out {path}: no folder that can be written to")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 0."""
    options = parse(arguments)
    if options.bytes:
        _print_bytes(options)
        return 0
    torch.set_num_threads(1)
    print(command.environment_line(options.device))
    machine = measure_machine(options.device, options.dtype)
    dtype = str(options.dtype).removeprefix("torch.")
    print(
        f"bandwidth {machine.bytes_per_second / 1e9:.1f} GB/s (triad), matrix product "
        f"{machine.flops_per_second / 1e9:,.0f} GFLOP/s ({dtype})"
    )
    setting = Setting(
        device=options.device,
        dtype=options.dtype,
        modes=options.modes,
        implementations=options.implementations,
        repeats=options.repeats,
        with_memory=not options.no_memory,
        machine=machine,
    )
    rows: list[Row] = []
    environment = command.environment(options.device)
    lines = options.out is not None and options.out.suffix == ".jsonl"
    if lines:
        options.out.write_bytes(b"")
    for operator in options.operators:
        print(f"\n{operator}\n{table.legend(operator, setting.device.type)}")
        for shape in options.shapes:
            found = measure_shape(operator, shape, setting)
            if found:
                print(f"\n{shape}\n{table.block(operator, found)}", flush=True)
            if lines:
                append_jsonl(options.out, found, environment)
            rows += found
    if options.out is not None:
        if not lines:
            write_parquet(options.out, rows, environment)
        print(f"\nwrote {len(rows)} rows to {options.out}")
    return 0


def _print_bytes(options: argparse.Namespace) -> None:
    names = command.contenders("gathered_linear")
    contenders = [name for name in names if command.wanted(name, options.implementations)]
    for shape in options.shapes:
        print(f"\n{shape}, {options.dtype}: bytes per token")
        print(table.kernel_bytes(shape, options.dtype.itemsize, contenders, "both"))


if __name__ == "__main__":
    sys.exit(main())
