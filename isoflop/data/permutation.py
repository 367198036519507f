"""A keyed permutation of range(length) that needs no table: the order of training windows.

FROZEN: results already written depend on these values. A change needs a new function.

A balanced Feistel network permutes the 2h-bit numbers for any round function; values that fall
outside range(length) walk along their cycle until they are inside, which keeps the map a
bijection on range(length) (Black and Rogaway 2002, "Ciphers with arbitrary finite domains",
cycle walking). 2**(2h) <= 4 * length, so a walk takes at most 4 passes on average.
"""

# B positions asked for at once

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 8
_MAX_LENGTH = 2**62


def permute(position: NDArray[np.int64], length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return where each position of an epoch points: a bijection on range(length).

    Args:
        position: any shape, values in [0, length).
        length: size of the permuted range, 1 to 2**62.
        seed: any integer.
        epoch: any integer; each (seed, epoch) has its own permutation.

    Returns:
        Values in [0, length), the shape of ``position``.

    Raises:
        ValueError: length or a position is out of its range.
    """
    if not 1 <= length <= _MAX_LENGTH:
        raise ValueError(f"length = {length}: must be in [1, 2**62]")
    position = np.asarray(position, dtype=np.int64)
    if position.size and not (position.min() >= 0 and position.max() < length):
        raise ValueError(f"position: must be in [0, {length})")
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    keys = [_round_key(seed, epoch, index) for index in range(NUM_ROUNDS)]
    value_B = _feistel(position.reshape(-1).astype(np.uint64), half_bits, keys)
    outside_B = value_B >= length
    while outside_B.any():
        value_B[outside_B] = _feistel(value_B[outside_B], half_bits, keys)
        outside_B = value_B >= length
    return value_B.astype(np.int64).reshape(position.shape)


def _feistel(
    value_B: NDArray[np.uint64], half_bits: int, keys: list[np.uint64]
) -> NDArray[np.uint64]:
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left_B, right_B = value_B >> shift, value_B & mask
    for key in keys:
        left_B, right_B = right_B, left_B ^ (_mix(right_B + key) & mask)
    return (left_B << shift) | right_B


def _mix(value_B: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014): every output bit depends on all input."""
    value_B = (value_B ^ (value_B >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_B = (value_B ^ (value_B >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_B ^ (value_B >> np.uint64(31))


def _round_key(seed: int, epoch: int, index: int) -> np.uint64:
    text = f"isoflop/permutation/1 seed={seed} epoch={epoch} round={index}"
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))
