"""Numerics and code generation on a new machine: `python -m isoflop_kernels.check --help`."""
