"""AdamW, clipping and the decay mask against ten steps of the reference's optimizer."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from golden_values import GOLDEN
from isoflop.families import family_names, get_spec
from isoflop.model import Transformer
from isoflop.recipe import get_recipe
from isoflop.train.optimizer import (
    build_adamw,
    clip_gradients,
    is_decayed,
    learning_rate,
    set_learning_rate,
)

CASES = json.loads((GOLDEN / "optimizer.json").read_text())
KINDS = {
    "warmup_stable_sqrt_decay": "sqrt",
    "warmup_stable_linear_decay": "linear",
    "cosine": "cosine",
    "constant": "constant",
}
NAMES = ("dense/kernel", "dense/bias", "embedder/embedding", "ffw/experts", "norm/scale")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "optimizer.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def clip(gradients: list[Tensor], max_norm: float | None) -> float:
    norm = float(torch.nn.utils.get_total_norm(gradients))
    clip_gradients(gradients, norm, max_norm)
    return norm


@pytest.mark.parametrize("case", CASES)
def test_ten_steps_of_the_reference(case: str, golden: dict[str, Tensor]) -> None:
    settings = CASES[case]
    parameters = {name: nn.Parameter(golden[f"init/{name}"].clone()) for name in NAMES}
    masked = settings["mask_weight_decay"]
    optimizer = build_adamw(
        # A name without "bias" or "scale" decays.
        [(name.replace("/", ".") if masked else "w", p) for name, p in parameters.items()],
        weight_decay=settings["weight_decay"] / settings["learning_rate"],
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
    )
    accumulation = settings["n_gradient_accumulation"]
    worst = 0.0
    for micro_step in range(settings["n_steps"]):
        for name, parameter in parameters.items():
            gradient = golden[f"grad{micro_step}/{name}"] / accumulation
            before = 0.0 if micro_step % accumulation == 0 else parameter.grad
            parameter.grad = gradient + before
        if micro_step % accumulation == accumulation - 1:
            clip([p.grad for p in parameters.values()], settings["clip_by_global_norm"])
            lr = learning_rate(
                micro_step // accumulation,
                settings["n_steps"] // accumulation,
                settings["learning_rate"],
                settings["warmup_steps"],
                settings["decay_fraction"],
                KINDS[settings["schedule"]],
            )
            set_learning_rate(optimizer, lr)
            optimizer.step()
        for name, parameter in parameters.items():
            after = golden[f"{case}/step{micro_step}/{name}"]
            worst = max(worst, float((parameter.detach() - after).abs().max()))
    assert worst < 1e-5


def test_masked_and_unmasked_differ_on_what_the_mask_covers(golden: dict[str, Tensor]) -> None:
    for name in NAMES:
        same = torch.equal(golden[f"nomask/step9/{name}"], golden[f"default_mask/step9/{name}"])
        assert same == is_decayed(name.replace("/", ".")), name


def test_clipping_scales_only_from_the_limit_on() -> None:
    below = [torch.tensor([0.6, 0.0]), torch.tensor([0.0])]
    assert clip(below, 1.0) == pytest.approx(0.6)
    assert below[0].tolist() == [pytest.approx(0.6), 0.0]
    above = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    assert clip(above, 1.0) == pytest.approx(5.0)
    assert above[0].tolist() == [pytest.approx(0.6), 0.0]
    assert above[1].tolist() == [pytest.approx(0.8)]
    unlimited = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert clip(unlimited, None) == pytest.approx(5.0)
    assert unlimited[1].tolist() == [4.0]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_is_returned_and_scales_nothing(bad: float) -> None:
    gradients = [torch.tensor([bad]), torch.tensor([4.0])]
    assert not math.isfinite(clip(gradients, 1.0))
    assert gradients[1].tolist() == [4.0]


@pytest.mark.parametrize("family", family_names())
def test_exactly_biases_and_scales_are_not_decayed(family: str) -> None:
    model = Transformer(
        family=family,
        config=get_spec(family).ladder(get_recipe("micro-v1"), 1),
        n_layers=1,
        d_model=16,
        n_heads=1,
        vocab_size=256,
    )
    undecayed = {name for name, _ in model.named_parameters() if not is_decayed(name)}
    scales = {
        "output_norm.scale",
        "blocks.0.attention_norm.scale",
        "blocks.0.feedforward_norm.scale",
        "blocks.0.attention.query_key_scale",
    }
    biases = {f"blocks.0.feedforward.bias{i}" for i in (1, 2)}
    assert undecayed == scales | (biases if family in ("swiglu", "moe") else set())
    optimizer = build_adamw(
        model.named_parameters(), weight_decay=0.1, beta1=0.9, beta2=0.999, eps=1e-8
    )
    by_decay = {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
    assert by_decay[0.0] == len(undecayed)
    assert by_decay[0.0] + by_decay[0.1] == len(list(model.parameters()))


def test_decay_follows_the_scheduled_learning_rate() -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = build_adamw([("w", parameter)], weight_decay=0.5, beta1=0.9, beta2=0.999, eps=1e-8)
    parameter.grad = torch.zeros(1)
    for lr, expected in ((0.0, 1.0), (0.1, 0.95), (0.2, 0.95 * 0.9)):
        set_learning_rate(optimizer, lr)
        optimizer.step()
        assert parameter.item() == pytest.approx(expected)
