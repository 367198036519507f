"""What one of several ranks does for test_parallel.py; not a test itself.

    python two_ranks.py ORDERS.json

The orders are carried out one after the other in one process, since torch takes seconds to import.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS))

from isoflop.errors import UserError  # noqa: E402  # after the path of the tests
from isoflop.model import Transformer, build_model  # noqa: E402
from isoflop.placement import Placement  # noqa: E402
from isoflop.spec import RunSpec  # noqa: E402
from isoflop.train import shards  # noqa: E402
from isoflop.train.checkpoint import CheckpointStore  # noqa: E402
from isoflop.train.optimizer import build_adamw, set_learning_rate  # noqa: E402
from isoflop.train.parallel import ranks_from_environment  # noqa: E402
from isoflop.train.ranks import SINGLE, Ranks  # noqa: E402
from isoflop.train.step import gradients_of_batch  # noqa: E402
from made_training import Recorded  # noqa: E402

CLIP_NORM = 0.5
PEAK_LR = 1e-3


def batch(spec: RunSpec, step: int) -> NDArray[np.uint16]:
    """Rows of different lengths, so that ranks have different numbers of targets."""
    rng = np.random.default_rng(step)
    targets_BT = rng.integers(1, spec.vocab_size, (spec.batch_size, spec.seq_len))
    for row, length in enumerate(rng.integers(1, spec.seq_len, spec.batch_size // 2)):
        targets_BT[row, length:] = 0
    return targets_BT.astype(np.uint16)


def train(
    spec: RunSpec,
    ranks: Ranks,
    *,
    first: int = 0,
    last: int | None = None,
    micro_batch: int | None = None,
    tie: str | None = None,
    weights: dict[str, Tensor] | None = None,
    state: dict[str, Tensor] | None = None,
) -> tuple[list[float], list[float], dict[str, Tensor], dict[str, Tensor]]:
    """Losses, gradient norms, weights and optimizer state of steps ``first`` to ``last``."""
    model = build_model(spec)
    if tie is not None:
        tie_parameters(model, tie, first)
    called = ranks.wrap(model)
    optimizer = build_adamw(
        model.named_parameters(), weight_decay=0.1, beta1=0.9, beta2=0.999, eps=1e-8
    )
    if weights is not None:
        ranks.load(model, optimizer, weights, state or {})
    losses, norms = [], []
    for step in range(first, spec.steps if last is None else last):
        loss, norm = gradients_of_batch(
            called,
            batch(spec, step),
            clip_norm=CLIP_NORM,
            precision=spec.precision,
            ranks=ranks,
            micro_batch=micro_batch,
        )
        set_learning_rate(optimizer, PEAK_LR * min(1.0, step / 10))
        optimizer.step()
        losses.append(loss)
        norms.append(norm)
        # As evaluations do, between steps and after the last one.
        if step % 10 == 9:
            with torch.no_grad():
                model(torch.ones(2, spec.seq_len, dtype=torch.int64))
    return losses, norms, *ranks.gather(model, optimizer)


def tie_parameters(model: Transformer, tie: str, first: int) -> None:
    """One matrix under two names in each layer, or in all; a buffer that says who made it."""
    layers = [block.feedforward for block in model.blocks]
    for layer in layers:
        layer.again = layer.w1 if tie == "layer" else layers[0].w1
        layer.register_buffer("made_at", torch.tensor(float(first)))


def save(
    path: Path,
    losses: list[float],
    norms: list[float],
    weights: dict[str, Tensor],
    state: dict[str, Tensor],
) -> None:
    curve = {"losses": losses, "norms": norms}
    tensors = {f"{k}": torch.tensor(v, dtype=torch.float64) for k, v in curve.items()}
    tensors |= {f"weights:{name}": value.contiguous() for name, value in weights.items()}
    tensors |= {f"state:{name}": value.contiguous() for name, value in state.items()}
    save_file(tensors, path)


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def obey(order: dict[str, Any], folder: Path) -> None:
    """Carries out one order; `single` ones on rank 0 alone, while the others wait in the next."""
    if order["parallel"] == "single":
        if os.environ["RANK"] == "0":
            if "saves" in order:
                train_and_save(order, folder, SINGLE)
            else:
                save(folder / order["name"], *ordered(order, folder, SINGLE))
        return
    os.environ["MASTER_PORT"] = str(order["port"])
    placement = Placement(parallel=order["parallel"])
    with ranks_from_environment(placement, timeout_s=60) as ranks:
        if "saves" in order:
            train_and_save(order, folder, ranks)
            return
        try:
            result = ordered(order, folder, ranks)
        except UserError as error:
            (folder / f"{order['name']}.{ranks.rank}").write_text(str(error))
        else:
            if ranks.is_main:
                save(folder / order["name"], *result)


def ordered(
    order: dict[str, Any], folder: Path, ranks: Ranks
) -> tuple[list[float], list[float], dict[str, Tensor], dict[str, Tensor]]:
    # Read after the ranks have met, so that what another order wrote is there.
    options = dict(order["options"])
    if order["resume"] is not None:
        tensors = load_file(folder / order["resume"])
        options["weights"] = part_of(tensors, "weights:")
        options["state"] = part_of(tensors, "state:")
    return train(RunSpec.from_json(order["spec"]), ranks, **options)


def train_and_save(order: dict[str, Any], folder: Path, ranks: Ranks) -> None:
    """A whole run with checkpoints of its own, which may begin with those of another order."""
    own, saves = folder / order["name"], order["saves"]
    if ranks.is_main:
        own.mkdir()
        if order["resume"] is not None:
            shutil.copytree(folder / order["resume"] / "ckpt", own / "ckpt")
    ranks.broadcast(0.0)
    store = CheckpointStore(own / "ckpt", run_id="run", num_kept=None)
    if saves.get("only_copy"):
        write_whole(store)
        return
    placement = Placement(parallel=order["parallel"], checkpoint_every_s=None)
    found = Recorded()
    kill(order, ranks)
    found.attempt(
        RunSpec.from_json(order["spec"]),
        store=store,
        stop_at=saves.get("stop_at"),
        placement=placement,
        ranks=ranks,
        keep_weights=True,
    )


def write_whole(store: CheckpointStore) -> None:
    """Replaces the newest checkpoint by what a single process writes of the same."""
    found = store.newest()
    assert found is not None
    weights, optimizer = dict(found.weights), dict(found.optimizer)
    shutil.rmtree(store.folder)
    store.save(found.step, weights, optimizer, found.extra, found.meta)


KILLS: dict[str, tuple[Any, str]] = {
    "writes": (shards, "_write"),
    "has written": (shards, "_exchanged"),
    "seals": (CheckpointStore, "_seal"),
    "has sealed": (CheckpointStore, "_put"),
}


def kill(order: dict[str, Any], ranks: Ranks) -> None:
    """Have a rank killed where it ``at`` the ``call``-th time."""
    killed = order["saves"].get("killed")
    if killed is None or killed["rank"] != ranks.rank:
        return
    owner, name = KILLS[killed["at"]]
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == killed.get("call", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(owner, name, call)


def obey_in_a_child(order: dict[str, Any], folder: Path) -> None:
    """Carries out an order in a copy of this process, which has no threads and no groups."""
    is_killed = "killed" in order.get("saves", {})
    pid = os.fork()
    if pid == 0:
        if is_killed:
            # What the rank that is left says of the other is not of interest.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 1
        try:
            obey(order, folder)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if is_killed:
        (folder / f"{order['name']}.{os.environ['RANK']}").write_text(str(code))
    elif code:
        sys.exit(code)


def main() -> None:
    torch.set_num_threads(1)
    path = Path(sys.argv[1])
    orders = json.loads(path.read_text())
    kills = any("killed" in order.get("saves", {}) for order in orders)
    if kills:
        # What FSDP imports, once instead of in each child.
        importlib.import_module("torch._dynamo")
    for order in orders:
        (obey_in_a_child if kills else obey)(order, path.parent)


if __name__ == "__main__":
    main()
