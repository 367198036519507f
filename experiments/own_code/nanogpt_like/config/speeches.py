# A tiny model for a laptop.
batch_size = 8
block_size = 64
n_layer = 2
n_head = 2
n_embd = 32
learning_rate = 2e-3
min_lr = 2e-4
eval_iters = 8
