# A tiny model for a laptop.
batch_size = 8
block_size = 64
n_layer = 2
n_head = 2
n_embd = 32
learning_rate = 6e-3
min_lr = 6e-4
warmup_iters = 5
eval_iters = 16
