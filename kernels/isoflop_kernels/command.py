"""What the commands `bench` and `check` share: their options and what a machine can run."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Collection, Iterator
from typing import NoReturn

import torch

from isoflop_kernels import triton_config
from isoflop_kernels.cpp import build
from isoflop_kernels.dispatch import IMPLEMENTATIONS, use_implementation
from isoflop_kernels.gathered_linear import choice

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an option in one line, and leaves with 2."""

    def error(self, message: str) -> NoReturn:
        """Print the one line."""
        self.exit(2, f"{self.prog}: {message}\n")


def comma_list(text: str) -> list[str]:
    """Parse "a,b,c"."""
    return [item.strip() for item in text.split(",") if item.strip()]


def device_option(text: str) -> torch.device:
    """Parse the name of a device that torch can use here, "cpu" or a GPU.

    Raises:
        argparse.ArgumentTypeError: there is no such device.
    """
    if text == "cpu":
        return torch.device("cpu")
    if not text.startswith("cuda"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text!r}: torch finds no GPU on this machine")
    try:
        # Asks torch, so that a number that does not exist is found here.
        index = torch.device(text).index or 0
        torch.cuda.get_device_properties(index)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: torch finds no such GPU") from error
    return torch.device("cuda", index)


def default_device() -> str:
    """Return the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_triton() -> bool:
    """Return whether the package triton is installed."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Return whether Triton runs its kernels in the interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def contenders(operator: str) -> list[str]:
    """Return every implementation of an operator by name; Triton's two versions of one are two."""
    triton = {
        "gathered_linear": [f"triton-{version}" for version in choice.VERSIONS],
        "product_key_topk": ["triton"],
        "stable_topk": [],
    }
    return [*(name for name in IMPLEMENTATIONS if name != "triton"), *triton[operator]]


def unavailable(contender: str, device: torch.device) -> str | None:
    """Return why an implementation cannot run on a device; None where it can."""
    if contender == "cpp":
        if device.type != "cpu":
            return "runs on the CPU only"
        return None if build.library() else "no C++ compiler, or the build failed"
    if contender.startswith("triton"):
        if not has_triton():
            return "triton is not installed"
        if device.type == "cpu" and not interpreting():
            return "needs GPU or TRITON_INTERPRET=1"
        if interpreting() and _version("triton") < (3, 7) and _version("numpy") >= (2, 4):
            return "the interpreter of triton below 3.7 fails with numpy 2.4: needs an older numpy"
    return None


def _version(package: str) -> tuple[int, int]:
    """Return the first two numbers of an installed package's version."""
    major, minor = importlib.metadata.version(package).split(".")[:2]
    return int(major), int(minor)


def wanted(contender: str, names: Collection[str]) -> bool:
    """Return whether an implementation is among names, of which "triton" means all its versions."""
    return any(
        contender == name or contender.startswith(f"{name}-") or name.startswith(f"{contender}-")
        for name in names
    )


@contextlib.contextmanager
def using(contender: str) -> Iterator[None]:
    """Run the operators with one of `contenders`."""
    name, _, version = contender.partition("-")
    before = os.environ.get(choice.VARIABLE)
    if version:
        os.environ[choice.VARIABLE] = version
    try:
        with use_implementation(name):
            yield
    finally:
        if version:
            os.environ.pop(choice.VARIABLE)
            if before is not None:
                os.environ[choice.VARIABLE] = before


def environment(device: torch.device) -> dict[str, str]:
    """Return the versions and the hardware that the results depend on."""
    on_gpu = device.type == "cuda"
    try:
        compiler = " ".join(build.compiler())
    except RuntimeError:
        compiler = "none"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if has_triton() else "none",
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "architecture": triton_config.architecture_of(device) if on_gpu else platform.machine(),
        "compiler": compiler,
    }


def environment_line(device: torch.device) -> str:
    """Return the environment for people."""
    return ", ".join(f"{name} {value}" for name, value in environment(device).items())


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:  # noqa: PTH123
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or sys.platform
