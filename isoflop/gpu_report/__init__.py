"""One command that holds our predictions against a GPU, in nine minutes, on a bare machine.

    python -m isoflop.gpu_report --budget-s 540 --out DIR

It needs torch, Triton and numpy alone. The parent process plans, watches the clock and writes; it
never imports torch. What is measured runs in processes of its own (`worker.py`), so that a crash or
a kernel that hangs costs one case.
"""
