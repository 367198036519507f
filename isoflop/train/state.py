"""The state of a run in training: all that a later process needs to go on as if nothing happened.

Each step's batch and learning rate follow from its number, so the state is the model, the
optimizer, the number of completed steps, the random generators and what was gathered.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.model import Transformer
from isoflop.train.checkpoint import Checkpoint, CheckpointStore
from isoflop.train.hooks import Accumulator
from isoflop.train.memory import peak_bytes
from isoflop.train.ranks import Ranks

# Step times and random states lie beside the optimizer's tensors.
_STEP_S = "step_s"
_TORCH_RNG, _CUDA_RNG, _NUMPY_RNG = "rng.torch", "rng.cuda", "rng.numpy"


@dataclass(kw_only=True, slots=True)
class TrainingState:
    """A run between two optimizer steps."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    device: torch.device
    accumulators: Mapping[str, Accumulator]
    step: int = 0
    """Completed optimizer steps."""
    step_s: list[float] = field(default_factory=list)
    """Seconds of each completed step, whichever attempt did it."""
    peak_mem_bytes: int | None = None
    """Peak of the attempts before this one."""
    trunk_steps: int = 0
    """Of the completed steps, those that another run did before this one left it."""
    trunk_wall_s: float = 0.0
    """Seconds of these steps."""

    def peak(self) -> int | None:
        """Return the peak memory of all attempts so far whose checkpoints led here, bytes."""
        known = [
            peak for peak in (self.peak_mem_bytes, peak_bytes(self.device)) if peak is not None
        ]
        return max(known, default=None)

    def save(
        self, store: CheckpointStore, ranks: Ranks, *, batch_size: int, is_last: bool = False
    ) -> bool:
        """Write a checkpoint; all ranks must call. Of what is split each writes its own part.

        Args:
            store: where to.
            ranks: the processes that share the run.
            batch_size: sequences of an optimizer step.
            is_last: of the last step: its weights may be kept, and are in one file.

        Returns:
            False if this process may not write any more.

        Raises:
            CheckpointError: it could not be written.
        """
        tensors, meta = self._beside_the_model(batch_size)
        shard = ranks.shard(self.model, self.optimizer)
        if shard is not None:
            if is_last:
                weights = ranks.gather(self.model, None)[0]
                shard = shard.with_whole_weights(weights)
            return store.save_shard(self.step, shard, tensors, meta, ranks)
        weights, optimizer = ranks.gather(self.model, self.optimizer)
        return not ranks.is_main or store.save(self.step, weights, optimizer, tensors, meta)

    def _beside_the_model(self, batch_size: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the JSON values that a checkpoint has besides."""
        tensors, values = random_state(self.device)
        tensors[_STEP_S] = torch.tensor(self.step_s, dtype=torch.float64)
        meta = {
            "data_position": self.step * batch_size,
            "peak_mem_bytes": self.peak(),
            "trunk_steps": self.trunk_steps,
            "trunk_wall_s": self.trunk_wall_s,
            "random": values,
            "accumulators": {name: a.state() for name, a in self.accumulators.items()},
        }
        return tensors, meta

    def restore(self, store: CheckpointStore, ranks: Ranks) -> None:
        """Take the newest complete checkpoint; without one, all stays as it is."""
        found = store.newest() if ranks.is_main else None
        step = int(ranks.broadcast(-1.0 if found is None else float(found.step)))
        if step < 0:
            return
        self.take(store.read(step) if found is None else found, ranks)

    def take(self, checkpoint: Checkpoint, ranks: Ranks) -> None:
        """Go on from a checkpoint, which all ranks were given."""
        meta = checkpoint.meta
        ranks.load(self.model, self.optimizer, checkpoint.weights, checkpoint.optimizer)
        self.step = checkpoint.step
        self.step_s = checkpoint.extra[_STEP_S].tolist()
        self.peak_mem_bytes = meta["peak_mem_bytes"]
        # Checkpoints of version 0.1.0 lack them: no run began where another had been.
        self.trunk_steps = meta.get("trunk_steps", 0)
        self.trunk_wall_s = meta.get("trunk_wall_s", 0.0)
        for name, accumulator in self.accumulators.items():
            if name in meta["accumulators"]:
                accumulator.load(meta["accumulators"][name])
        set_random_state(self.device, checkpoint.extra, meta["random"])


def seed_all(seed: int) -> None:
    """Set the seed of every generator that a module may draw from; ours draw from none."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of torch's, numpy's and Python's generators: tensors and JSON values."""
    numpy_state = np.random.get_state(legacy=False)
    version, words, spare = random.getstate()
    keys = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    tensors = {_TORCH_RNG: torch.get_rng_state(), _NUMPY_RNG: keys}
    if device.type == "cuda":
        tensors[_CUDA_RNG] = torch.cuda.get_rng_state(device)
    return tensors, {
        "numpy": [numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]],
        "python": [version, list(words), spare],
    }


def set_random_state(
    device: torch.device, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Restore what :func:`random_state` returned; an unsaved CUDA state stays as it is."""
    position, has_gauss, gauss = values["numpy"]
    keys = tensors[_NUMPY_RNG].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))
    version, words, spare = values["python"]
    random.setstate((version, tuple(words), spare))
    torch.set_rng_state(tensors[_TORCH_RNG])
    if device.type == "cuda" and _CUDA_RNG in tensors:
        torch.cuda.set_rng_state(tensors[_CUDA_RNG], device)
