"""Times, memory and bytes of every implementation: `python -m isoflop_kernels.bench --help`."""
