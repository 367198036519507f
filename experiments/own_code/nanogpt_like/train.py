"""Trains a GPT on one device.

    python data/speeches/prepare.py FILE...
    python train.py config/speeches.py --max_iters=500

Goes on from out_dir/ckpt.pt with --init_from=resume.
"""

import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from adamw import AdamW

from model import GPT, GPTConfig

# -----------------------------------------------------------------------------
# I/O
out_dir = "out"
eval_interval = 250
log_interval = 10
eval_iters = 20
always_save_checkpoint = False
init_from = "scratch"  # or "resume"
# data
dataset = "speeches"
gradient_accumulation_steps = 1
batch_size = 16
block_size = 64
# model
n_layer = 4
n_head = 4
n_embd = 64
parallel = False
bias = False
# optimizer
learning_rate = 1e-3
max_iters = 1000
weight_decay = 0.1
warmup_iters = 20
lr_decay_iters = 1000  # should be max_iters
min_lr = 1e-4
# system
device = "cpu"
# -----------------------------------------------------------------------------
config_keys = [k for k, v in globals().items() if k[0] != "_" and isinstance(v, int | float | str)]
exec(Path("configurator.py").read_text())
config = {k: globals()[k] for k in config_keys}
# -----------------------------------------------------------------------------

tokens_per_iter = gradient_accumulation_steps * batch_size * block_size
print(f"tokens per iteration will be: {tokens_per_iter:,}")
os.makedirs(out_dir, exist_ok=True)
torch.manual_seed(1337)

data_dir = Path("data") / dataset


def get_batch(split):
    # A new memmap each time, lest memory grow.
    data = np.memmap(data_dir / f"{split}.bin", dtype=np.uint16, mode="r")
    ix = torch.randint(len(data) - block_size, (batch_size,))
    x = torch.stack([torch.from_numpy(data[i : i + block_size].astype(np.int64)) for i in ix])
    y = torch.stack(
        [torch.from_numpy(data[i + 1 : i + 1 + block_size].astype(np.int64)) for i in ix]
    )
    return x.to(device), y.to(device)


iter_num = 0
best_val_loss = 1e9
model_args = dict(
    n_layer=n_layer,
    n_head=n_head,
    n_embd=n_embd,
    block_size=block_size,
    bias=bias,
    parallel=parallel,
)
if init_from == "resume":
    print(f"Resuming training from {out_dir}")
    checkpoint = torch.load(os.path.join(out_dir, "ckpt.pt"), map_location=device)
    model_args = checkpoint["model_args"]
model = GPT(GPTConfig(**model_args)).to(device)
optimizer = AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
if init_from == "resume":
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    iter_num = checkpoint["iter_num"]
    best_val_loss = checkpoint["best_val_loss"]


@torch.no_grad()
def estimate_loss():
    out = {}
    model.eval()
    for split in ("train", "val"):
        out[split] = sum(model(*get_batch(split))[1].item() for _ in range(eval_iters)) / eval_iters
    model.train()
    return out


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / max(lr_decay_iters - warmup_iters, 1)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * decay_ratio)) * (learning_rate - min_lr)


X, Y = get_batch("train")
t0 = time.time()
while True:
    optimizer.lr = get_lr(iter_num)

    # evaluate the loss on train/val sets and write checkpoints
    if iter_num % eval_interval == 0:
        losses = estimate_loss()
        print(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}")
        if losses["val"] < best_val_loss or always_save_checkpoint:
            best_val_loss = losses["val"]
            if iter_num > 0:
                checkpoint = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "model_args": model_args,
                    "iter_num": iter_num,
                    "best_val_loss": best_val_loss,
                    "config": config,
                }
                print(f"saving checkpoint to {out_dir}")
                torch.save(checkpoint, os.path.join(out_dir, "ckpt.pt"))

    for _ in range(gradient_accumulation_steps):
        logits, loss = model(X, Y)
        X, Y = get_batch("train")
        (loss / gradient_accumulation_steps).backward()
    optimizer.step()

    t1 = time.time()
    dt, t0 = t1 - t0, t1
    if iter_num % log_interval == 0:
        print(f"iter {iter_num}: loss {loss.item():.4f}, time {dt * 1000:.2f}ms")
    iter_num += 1
    if iter_num > max_iters:
        break
