"""TensorBoard: event files in the run's folder (`tensorboard --logdir results/NAME/runs`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from isoflop.launch.sinks import About


def open_backend(about: About) -> Events:
    """Return a writer of event files for one attempt.

    Raises:
        ImportError: the package tensorboard is not installed (`pip install isoflop[tensorboard]`).
    """
    return Events(about)


class Events:
    """Writes scalars."""

    def __init__(self, about: About) -> None:
        self._folder = str(about.folder / "tensorboard")
        self._writer: SummaryWriter | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each name."""
        if self._writer is None:
            # The run's folder is not made again where it was moved away.
            Path(self._folder).mkdir(exist_ok=True)
            # A resumed run begins at an earlier step: what was shown from there on is replaced.
            self._writer = SummaryWriter(self._folder, purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush pending rows."""
        if self._writer is not None:
            self._writer.close()
