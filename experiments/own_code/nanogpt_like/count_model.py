"""For isoflop: a model of each rung, to count its FLOPs. Not a part of the trainer."""

from model import GPT, GPTConfig


def build(**sizes):
    return GPT(GPTConfig(block_size=64, n_layer=1, n_head=1, **sizes))
