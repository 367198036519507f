"""Check the kernels on this machine: numbers against float64, compiled code, registration.

    python -m isoflop_kernels.check [--quick] [--device cuda] [--targets all]

One line per check: PASS, FAIL, or SKIP with the reason. The exit code is 1 when anything failed.
With TRITON_INTERPRET=1 the Triton kernels run on CPU tensors, slowly, in small shapes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import torch

from isoflop_kernels import command, triton_config
from isoflop_kernels.check import numerics

# A check names itself; running it says what it found, and raises where that is wrong.
Check = tuple[str, Callable[[], str]]
COMPILE_SECONDS = 600


class Failure(Exception):
    """What a check found wrong."""


class Skip(Exception):
    """Why a check cannot run here."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked options; exit with 2 and one line if one does not fit."""
    parser = command.Parser(prog="isoflop_kernels.check", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", type=command.device_option, default=command.default_device())
    add("--quick", action="store_true", help="few shapes, float32 alone, no compiled code")
    add("--targets", help="all, or of those of aot; this machine's, or sm_90 without a GPU")
    options = parser.parse_args(arguments)
    known = list(triton_config.TABLE)
    if options.targets is None:
        options.targets = [triton_config.architecture_of(options.device)]
    else:
        options.targets = known if options.targets == "all" else command.comma_list(options.targets)
    for target in options.targets:
        if target not in known:
            parser.error(f"--targets {target}: must be all or of {', '.join(known)}")
    return options


def checks(options: argparse.Namespace) -> Iterator[Check]:
    """Yield every check in order."""
    device, dtypes = options.device, list(numerics.LIMITS)[: 1 if options.quick else None]
    for contender in command.contenders("gathered_linear"):
        for dtype in dtypes:
            cases = _cases(contender, device, quick=options.quick)
            title = f"gathered_linear {contender} {_short(dtype)}"
            yield f"{title} numbers", _numbers(contender, cases, dtype, device)
        yield f"gathered_linear {contender} repeats", _repeats(contender, device)
    for contender in command.contenders("product_key_topk"):
        for dtype in dtypes:
            title = f"product_key_topk {contender} {_short(dtype)} exact"
            yield title, _selection(contender, dtype, device)
    yield from _registrations(device, quick=options.quick)
    for target in options.targets:
        yield f"compiled code for {target}", _compiled(target, quick=options.quick)


def _cases(contender: str, device: torch.device, *, quick: bool) -> Sequence[numerics.Case]:
    if quick:
        return numerics.QUICK
    cases = numerics.CASES
    return cases if _interpreted(contender, device) else cases + numerics.LARGE


def _interpreted(contender: str, device: torch.device) -> bool:
    return contender.startswith("triton") and device.type == "cpu"


def _numbers(
    contender: str, cases: Sequence[numerics.Case], dtype: torch.dtype, device: torch.device
) -> Callable[[], str]:
    def run() -> str:
        _skip_unavailable(contender, device)
        limits = numerics.LIMITS
        if _interpreted(contender, device):
            limits = numerics.INTERPRETED_LIMITS
        limit, largest = limits[dtype], 0.0
        for case in cases:
            error, name = numerics.worst_error(contender, case, dtype, device)
            if not error <= limit:
                raise Failure(f"{name} is off by {error:.1e} (limit {limit:g}) at {case}")
            largest = max(largest, error)
        return f"error {largest:.1e}, limit {limit:g}"

    return run


def _repeats(contender: str, device: torch.device) -> Callable[[], str]:
    def run() -> str:
        _skip_unavailable(contender, device)
        if device.type != "cpu" and not contender.startswith("triton"):
            raise Skip("promised on the CPU only")
        for case in numerics.QUICK:
            if not numerics.repeats(contender, case, torch.float32, device):
                raise Failure(f"a second run gave other bits at {case}")
        return "bit-identical"

    return run


def _selection(contender: str, dtype: torch.dtype, device: torch.device) -> Callable[[], str]:
    def run() -> str:
        _skip_unavailable(contender, device)
        if not numerics.selects_exactly(contender, dtype, device):
            raise Failure("other experts or scores than the stable sort of all sums")
        return "exact, ties included"

    return run


def _registrations(device: torch.device, *, quick: bool) -> Iterator[Check]:
    # The reference is plain torch, and both versions of Triton are one operation.
    for contender, suffix in (("bag", ""), ("cpp", "_cpp"), ("triton-v1", "_triton")):
        title = f"registration {contender.partition('-')[0]}"
        yield title, _registration(contender, suffix, device, quick=quick)


def _registration(
    contender: str, suffix: str, device: torch.device, *, quick: bool
) -> Callable[[], str]:
    def run() -> str:
        _skip_unavailable(contender, device)
        inputs = numerics.Case(T=2, C=1).inputs(torch.float32, device)
        dy = inputs.pop("dy")
        leaves = [t.requires_grad_(t.is_floating_point()) for t in inputs.values()]
        plain = [t.detach() for t in leaves]
        h = torch.zeros_like(inputs["score"])
        gate = ("silu", "gate_then_act")
        with command.using(contender):
            # Triton's operations exist after the first call.
            numerics.differentiate(contender, numerics.Case(T=2, C=1), inputs | {"dy": dy})
            numerics.selects_exactly(contender.partition("-")[0], torch.float32, device)
            ops = torch.ops.isoflop_kernels
            tests = [
                (getattr(ops, f"gathered_linear{suffix}"), (*leaves, *gate)),
                (
                    getattr(ops, f"gathered_linear{suffix}_backward"),
                    (dy, *plain, h, *gate, [True] * 4),
                ),
                (
                    getattr(ops, f"product_key_pairs{suffix}"),
                    (torch.randn(2, 2, 1, 5, device=device), 2),
                ),
            ]
            for operation, arguments in tests[: 1 if quick else None]:
                torch.library.opcheck(operation.default, arguments)
        return "opcheck"

    return run


def _compiled(target: str, *, quick: bool) -> Callable[[], str]:
    def run() -> str:
        if quick:
            raise Skip("--quick")
        if not command.has_triton():
            raise Skip("triton is not installed")
        # In a process of its own: kernels that are interpreted here cannot be compiled here.
        environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
        result = subprocess.run(
            [sys.executable, "-m", "isoflop_kernels.aot", target],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMPILE_SECONDS,
        )
        lines = [line for line in result.stdout.splitlines() if line.startswith(target)]
        if result.returncode != 0:
            last = (result.stderr.strip().splitlines() or [""])[-1]
            raise Failure(last or f"spills or atomics, see python -m isoflop_kernels.aot {target}")
        return f"{len(lines)} kernels without spills or atomics"

    return run


def _skip_unavailable(contender: str, device: torch.device) -> None:
    reason = command.unavailable(contender, device)
    if reason is not None:
        raise Skip(reason)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def outcome_of(run: Callable[[], str]) -> tuple[str, str]:
    """Return PASS, FAIL or SKIP, and what was found."""
    try:
        return "PASS", run()
    except Skip as reason:
        return "SKIP", str(reason)
    except Exception as error:  # whatever a kernel or a compiler raises is a finding
        first = (str(error).strip().splitlines() or [""])[0]
        return "FAIL", first if isinstance(error, Failure) else f"{type(error).__name__}: {first}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per check; 1 if any failed."""
    options = parse(arguments)
    torch.set_num_threads(1)
    print(command.environment_line(options.device))
    failed = 0
    for title, run in checks(options):
        outcome, found = outcome_of(run)
        failed += outcome == "FAIL"
        print(f"{outcome}  {title:43}{found}", flush=True)
    print(f"{failed} checks failed" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
