"""Lion: the sign of a moving average of the gradient."""

import torch


class Lion:
    def __init__(self, params, lr, betas=(0.9, 0.95), weight_decay=0.1):
        self.params = list(params)
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.momentum = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self):
        for p, m in zip(self.params, self.momentum, strict=True):
            update = torch.sign(torch.lerp(p.grad, m, self.betas[0]))
            p.mul_(1 - self.lr * self.weight_decay).sub_(update, alpha=self.lr)
            m.lerp_(p.grad, 1 - self.betas[1])
            p.grad = None

    def state_dict(self):
        return {"momentum": self.momentum}

    def load_state_dict(self, state):
        self.momentum = state["momentum"]
