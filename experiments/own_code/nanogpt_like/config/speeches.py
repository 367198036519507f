# A tiny model for a laptop.
batch_size = 4
block_size = 64
n_layer = 1
n_head = 1
n_embd = 16
learning_rate = 3e-2
min_lr = 3e-3
warmup_iters = 5
eval_iters = 32
