"""Sizes of the layers that the bench measures."""

# T tokens, D width, C channels, K experts chosen per channel, N sub-keys per half,
# E = N * N experts per channel

from __future__ import annotations

import dataclasses

from isoflop_kernels.gathered_linear.flops import backward_flops, forward_flops


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One layer with a table per channel, and its tokens."""

    name: str
    T: int
    D: int
    C: int
    K: int
    N: int

    @property
    def E(self) -> int:
        """Experts per channel."""
        return self.N * self.N

    @property
    def num_choices(self) -> int:
        """Rows gathered from each of the two tables: T * C * K."""
        return self.T * self.C * self.K

    @property
    def table_size(self) -> int:
        """Numbers in one of the two tables, all channels: C * E * D."""
        return self.C * self.E * self.D

    def flops(self, mode: str) -> int:
        """Counted FLOPs of a mode, with all four gradients."""
        x, idx, w = (self.T, self.D), (self.T, self.C, self.K), (self.C, self.E, self.D)
        forward = forward_flops(x, idx)
        backward = backward_flops(x, x, idx, idx, w, w, idx, "identity", "", [True] * 4)
        return {"forward": forward, "backward": backward, "both": forward + backward}[mode]

    def __str__(self) -> str:
        sizes = f"T {self.T}, D {self.D}, C {self.C}, K {self.K}, N {self.N}, E {self.E}"
        return f"{self.name} ({sizes})"


# Layers that a CPU trains, and the size that the CPU's requirements are stated at.
SMALL = {
    shape.name: shape
    for shape in (
        Shape(name="micro-16", T=1024, D=16, C=4, K=4, N=12),
        Shape(name="micro-32", T=1024, D=32, C=4, K=4, N=16),
        Shape(name="micro-48", T=1024, D=48, C=4, K=4, N=20),
        Shape(name="micro-64", T=2048, D=64, C=4, K=4, N=24),
        Shape(name="width-128", T=2048, D=128, C=16, K=8, N=28),
    )
}
# Width and sub-keys per half of the scales of arXiv 2606.07414, all with 16 channels and 8 chosen.
SCALES = {
    2: (256, 40),
    3: (384, 52),
    4: (512, 64),
    5: (640, 76),
    6: (768, 88),
    7: (896, 100),
    8: (1024, 112),
}


def scale(number: int, num_tokens: int) -> Shape:
    """Return one layer at one of the paper's scales."""
    width, num_keys = SCALES[number]
    return Shape(name=f"scale-{number}", T=num_tokens, D=width, C=16, K=8, N=num_keys)
