"""Weights & Biases: one of its runs for each of ours, continued when ours is.

Project, mode and login are the library's own settings (WANDB_PROJECT, WANDB_MODE, WANDB_API_KEY);
the project is the study's name where the environment names none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import wandb

from isoflop.launch.sinks import About
from isoflop.spec import shown_id


def open_backend(about: About) -> Wandb:
    """Begin or continue the run.

    Raises:
        ImportError: the package wandb is not installed (`pip install isoflop[wandb]`).
    """
    return Wandb(about)


class Wandb:
    """Logs scalars with their step as a value, since its own steps may never go back."""

    def __init__(self, about: About) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", about.study),
            id=shown_id(about.run_id),
            name=shown_id(about.run_id),
            resume="allow",
            dir=str(about.folder),
            config=dict(about.spec),
            # A worker trains one run after another in one process.
            reinit="create_new",
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Wait for the upload, in the sink's thread."""
        self._run.finish()
