"""Train a small byte language model, with or without gates on the outputs of attention.

    python train.py --width=32 --depth=2 --steps=100 --decay-start=80 --out=/tmp/out

The text is made up: sentences in which a name comes back, so that attention has something to find.
"""

import argparse
import os
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from isoflop import trainer

# B sequences, T bytes of each, H heads, K width of a head, D width of the model.
NUM_BYTES = 128  # ASCII
SEQ_LEN = 64
BATCH_SIZE = 8
HEAD_WIDTH = 8
PEAK_RATE = 4e-3
WARMUP_STEPS = 10


class Attention(nn.Module):
    """Causal attention; gated: each output times a sigmoid of the input, before the projection."""

    def __init__(self, width, gated):
        super().__init__()
        self.num_heads = width // HEAD_WIDTH
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.gate = nn.Linear(width, width, bias=False) if gated else None
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD):
        B, T, D = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, 3, self.num_heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        y_BHTK = F.scaled_dot_product_attention(*qkv, is_causal=True)
        y_BTD = y_BHTK.transpose(1, 2).reshape(B, T, D)
        if self.gate is not None:
            y_BTD = y_BTD * torch.sigmoid(self.gate(x_BTD))
        return self.proj(y_BTD)


class Model(nn.Module):
    """A pre-norm transformer; its output is the logits."""

    def __init__(self, width, depth, gated):
        super().__init__()
        self.embed = nn.Embedding(NUM_BYTES, width)
        self.position = nn.Parameter(torch.zeros(SEQ_LEN, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        self.attention = nn.ModuleList(Attention(width, gated) for _ in range(depth))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )
        self.head = nn.Linear(width, NUM_BYTES, bias=False)

    def forward(self, tokens_BT):
        x_BTD = self.embed(tokens_BT) + self.position
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x_BTD = x_BTD + attention(self.norms[2 * i](x_BTD))
            x_BTD = x_BTD + mlp(self.norms[2 * i + 1](x_BTD))
        return self.head(self.norms[-1](x_BTD))


def build(width, depth, gated=False):
    """Return the model of a rung; isoflop counts it."""
    return Model(width, depth, gated)


def make_text(num_sentences, seed):
    """Return made-up sentences as token ids."""
    choice = random.Random(seed).choice
    letters = ("bdklmnrst", "aeiou")
    names = ["".join(choice(letters[i % 2]) for i in range(5)) for _ in range(99)]
    verbs, places = ("saw", "met", "left", "heard"), ("the hill", "the river", "town", "home")
    sentences = []
    for _ in range(num_sentences):
        name, other = choice(names), choice(names)
        sentences.append(f"{name} {choice(verbs)} {other} near {choice(places)}, ")
        sentences.append(f"and {other} {choice(verbs)} {name}. ")
    return torch.tensor(list("".join(sentences).encode("ascii")))


def batch_of(text, step, seed):
    """Return inputs and targets of a step: the same at every attempt, whatever was before."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(text) - SEQ_LEN - 1, (BATCH_SIZE,), generator=generator)
    rows = torch.stack([text[start : start + SEQ_LEN + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:]


def loss_of(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def validate(model, text):
    batches = [batch_of(text, step, seed=12_345) for step in range(8)]
    return sum(loss_of(model, *batch).item() for batch in batches) / len(batches)


def save(path, model, optimizer, step):
    """Write a checkpoint under another name first, so that a kill never leaves half of one."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, f"{path}.new")
    os.replace(f"{path}.new", path)


def rate_at(step, steps, decay_start):
    """Return the learning rate: linear warm-up, constant, linear to a tenth from decay_start on."""
    decayed = max(0, step - decay_start) / max(1, steps - decay_start)
    return PEAK_RATE * min((step + 1) / WARMUP_STEPS, 1 - 0.9 * decayed)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--decay-start", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gated", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = build(args.width, args.depth, args.gated)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.1)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, first = args.out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    text, held_out = make_text(4000, seed=1), make_text(400, seed=2)
    for step in range(first, args.steps):
        if trainer.should_stop():
            save(checkpoint, model, optimizer, step)
            trainer.stop()
        with trainer.branch(step) as folder:
            if folder:
                save(folder / checkpoint.name, model, optimizer, step)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, args.steps, args.decay_start)
        loss = loss_of(model, *batch_of(text, step, args.seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            trainer.report(step=step + 1, loss=loss, tokens=(step + 1) * BATCH_SIZE * SEQ_LEN)
            save(checkpoint, model, optimizer, step + 1)
    loss = validate(model, held_out)
    print(f"loss {loss:.4f} after {args.steps} steps")
    trainer.finish(
        loss=loss,
        tokens=args.steps * BATCH_SIZE * SEQ_LEN,
        n_params=sum(parameter.numel() for parameter in model.parameters()),
    )


if __name__ == "__main__":
    main()
