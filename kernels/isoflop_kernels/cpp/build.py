"""Compile the C++ sources once per machine and load them; without a compiler there is None.

Only a C++17 compiler is needed (CXX, else c++, g++ or clang++): no torch headers, no build system.
The library takes raw pointers through ctypes, which releases the GIL while it runs. It is kept in
the user's cache folder under a name that depends on sources, compiler and processor, so a home
folder shared by different machines holds one library for each.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
SOURCES = ("linear.cpp", "select.cpp")
HEADERS = ("vectors.h",)
COMMON_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared")
# Tried in order: not every compiler has OpenMP, or knows the machine it runs on.
FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ())
BUILD_SECONDS = 120
CACHE_VARIABLE = "ISOFLOP_KERNELS_CACHE"

logger = logging.getLogger("isoflop_kernels")


def call(function: str, *arguments: Tensor | int) -> None:
    """Call a function of the library: tensors as pointers, sizes, then the number of threads.

    The tensors are contiguous, on CPU, and of the types that the function reads and writes.
    """
    loaded = library()
    assert loaded is not None
    values = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int64(a)
        for a in arguments
    ]
    getattr(loaded, function)(*values, ctypes.c_int64(torch.get_num_threads()))


def usable(tensor: Tensor) -> bool:
    """Return whether the library can work on this tensor's device; builds it if need be."""
    return tensor.device.type == "cpu" and library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, built if not there yet; None, with one log line, if it cannot be."""
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        # Results are right without it, and it may not have been asked for.
        logger.info("no C++ kernels, using the bag implementation: %s", error)
        return None


def cache_folder() -> Path:
    """Return ISOFLOP_KERNELS_CACHE, else `isoflop/kernels` in the XDG cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "isoflop" / "kernels"


def compiler() -> list[str]:
    """Return the C++ compiler as the start of a command line.

    Raises:
        RuntimeError: there is none.
    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        command = shlex.split(name) if name else []
        if command and shutil.which(command[0]):
            return command
    raise RuntimeError("no C++ compiler found (CXX, c++, g++ or clang++)")


def _built() -> Path:
    command = compiler()
    path = cache_folder() / f"cpp-{_key(command)}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        # Processes that build at the same time each rename a complete library into place.
        output = Path(folder) / "library.so"
        _compile(command, output)
        output.replace(path)
    return path


def _compile(command: list[str], output: Path) -> None:
    sources = [str(HERE / name) for name in SOURCES]
    error = ""
    for flags in FLAGS:
        result = subprocess.run(
            [*command, *COMMON_FLAGS, *flags, *sources, "-o", str(output)],
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        if result.returncode == 0:
            return
        error = (result.stderr.strip().splitlines() or ["no message"])[0]
    raise RuntimeError(f"{shlex.join(command)} failed: {error}")


def _key(command: list[str]) -> str:
    """Return a key of all that the library depends on, the processor's instructions included."""
    version = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    ).stdout
    parts = [shlex.join(command), version, repr((COMMON_FLAGS, FLAGS)), _processor()]
    parts += [(HERE / name).read_text() for name in (*SOURCES, *HEADERS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Return the model and instruction sets, as far as the system knows them."""
    described = [platform.machine(), platform.processor(), platform.system()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = ("model name", "flags", "Features", "CPU part")
        lines = info.read_text(errors="replace").split("\n\n")[0].splitlines()
        described += [line for line in lines if line.startswith(names)]
    return "\n".join(described)
