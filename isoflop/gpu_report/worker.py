"""The process that measures: reads jobs, a line each, and writes rows as they are found.

    python -m isoflop.gpu_report.worker DEVICE DESCRIPTOR

It is started by `workers.py`. What libraries print goes to its standard output, results to the
descriptor.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from isoflop.gpu_report import kernels, losses, machine, steps
from isoflop.gpu_report.records import Job, Row, to_json

KINDS: dict[str, Callable[[Job, torch.device], Iterator[Row]]] = {
    "machine": machine.measure_machine,
    "warm": kernels.warm,
    "check": kernels.check,
    "numbers": kernels.check_numbers,
    "kernel": kernels.measure_kernel,
    "warm_step": steps.warm,
    "warm_compiled": steps.warm_compiled,
    "step": steps.measure_step,
    "losses": losses.compare_losses,
}
_SHOWN = 300
_LOOK_S = 1.0


def main(device_name: str, descriptor: int) -> None:
    """Take jobs until there are no more."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    device = torch.device(device_name)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def send(message: dict[str, Any]) -> None:
        os.write(descriptor, json.dumps(message).encode() + b"\n")

    if device.type == "cuda":
        # Wakes the GPU; of several, the first.
        torch.zeros(1, device=device).item()
    send({"ready": True})
    for line in sys.stdin:
        job = Job(**json.loads(line))
        for row in _guarded(job, device):
            send({"row": to_json(row)})
        send({"done": is_usable(device)})


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, also in the middle of a kernel."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def _guarded(job: Job, device: torch.device) -> Iterator[Row]:
    """Yield the rows of a job, and whatever it raises as one more."""
    try:
        yield from KINDS[job.kind](job, device)
    except Exception as error:  # whatever a kernel or a compiler raises is a finding
        lines = str(error).strip().splitlines() or [""]
        note = f"{type(error).__name__}: {lines[0][:_SHOWN]}"
        yield Row(stage=job.stage, case=job.case, outcome="failed", note=note)
    with contextlib.suppress(RuntimeError):
        steps.free_memory(device)


def is_usable(device: torch.device) -> bool:
    """Return whether the device still computes: after an illegal access no call of it works."""
    try:
        return torch.ones(2, device=device).sum().item() == 2
    except RuntimeError:
        return False


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
