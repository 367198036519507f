"""AdamW, for weights and moments of one device."""

import torch


class AdamW:
    def __init__(self, params, lr, betas=(0.9, 0.95), weight_decay=0.1, eps=1e-8):
        self.params = list(params)
        self.lr, self.betas, self.weight_decay, self.eps = lr, betas, weight_decay, eps
        self.steps = 0
        self.first = [torch.zeros_like(p) for p in self.params]
        self.second = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self):
        self.steps += 1
        corrections = [1 - beta**self.steps for beta in self.betas]
        for p, m, v in zip(self.params, self.first, self.second, strict=True):
            m.lerp_(p.grad, 1 - self.betas[0])
            v.lerp_(p.grad.square(), 1 - self.betas[1])
            denominator = (v / corrections[1]).sqrt_().add_(self.eps)
            p.mul_(1 - self.lr * self.weight_decay)
            p.addcdiv_(m, denominator, value=-self.lr / corrections[0])
            p.grad = None

    def state_dict(self):
        return {"steps": self.steps, "first": self.first, "second": self.second}

    def load_state_dict(self, state):
        self.steps, self.first, self.second = state["steps"], state["first"], state["second"]
