"""Fit a multilayer perceptron to a random teacher, in JAX, without isoflop's helper.

    python train.py --width 16 --steps 200 --seed 0 --result /tmp/result.json

It writes its own result, and says by its exit code how it ended: 0 done, 77 diverged.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

# B examples of a step, I inputs of each.
NUM_INPUTS = 8
BATCH_SIZE = 64
RATE = 0.05
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


def init(seed, width):
    """Return parameters at the start."""
    normal = np.random.default_rng(seed).standard_normal
    return {
        "up": normal((NUM_INPUTS, width), dtype=np.float32) / NUM_INPUTS**0.5,
        "bias": np.zeros(width, dtype=np.float32),
        "down": normal(width, dtype=np.float32) / width**0.5,
    }


def examples(seed, num):
    """Return inputs and what a fixed teacher of 64 units says of them."""
    teacher = init(99, 64)
    x_BI = np.random.default_rng(seed).standard_normal((num, NUM_INPUTS), dtype=np.float32)
    return x_BI, np.sin(x_BI @ teacher["up"]) @ teacher["down"]


def make_step(activation):
    """Return the function of one step, compiled, and that of the loss."""

    def loss_of(params, x_BI, y_B):
        hidden_BH = activation(x_BI @ params["up"] + params["bias"])
        return jnp.mean((hidden_BH @ params["down"] - y_B) ** 2)

    @jax.jit
    def step(params, x_BI, y_B):
        loss, grads = jax.value_and_grad(loss_of)(params, x_BI, y_B)
        return jax.tree.map(lambda p, g: p - RATE * g, params, grads), loss

    return step, loss_of


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    begun_s = time.monotonic()
    step, loss_of = make_step(ACTIVATIONS[args.activation])
    params = init(args.seed, args.width)
    x_BI, y_B = examples((args.seed, 1), args.steps * BATCH_SIZE)
    for first in range(0, len(x_BI), BATCH_SIZE):
        batch = slice(first, first + BATCH_SIZE)
        params, training_loss = step(params, x_BI[batch], y_B[batch])
    loss = float(loss_of(params, *examples(7, 4096)))
    print(f"training loss {training_loss:.4f}, loss {loss:.4f}")
    if not math.isfinite(loss):
        sys.exit(77)
    result = {
        "loss": loss,
        "tokens": args.steps * BATCH_SIZE,
        "n_params": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "wall_s": time.monotonic() - begun_s,
    }
    # Under another name first: a result is there whole or not at all.
    temporary = args.result.with_suffix(".new")
    temporary.write_text(json.dumps(result))
    os.replace(temporary, args.result)


if __name__ == "__main__":
    main()
