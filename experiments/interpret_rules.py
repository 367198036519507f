"""The rules of claims C5 to C8 and C10, and what they say of measured numbers.

C5, C6, C7 and C10: the paper's claims put into numbers before any run of the reference study was
looked at. C8: word for word the rules frozen in the plan of facts_tiny.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"

MAX_ERROR = 1e-5
ACTIVE_SHARE = 0.001
USED, COLLAPSED = 0.9, 0.5
KNOWN = 0.9
MOST_SEEDS, FEWEST_SEEDS = 4, 1

RULES = {
    "C5": "supported if at every published size less than 0.1 % of a feed-forward layer's "
    "parameters (router included) are active for a token; not supported if at none; otherwise "
    "undecided",
    "C6": "supported if in every layer of every model the largest error over tokens, relative to "
    "the root mean square of the outputs, is below 1e-5: of y against W(gates) x, of y against the "
    "sum of the experts, and of superposition with the gates held; otherwise not supported",
    "C7": "supported if in every model some layer's gates are purer in word class than each "
    "control, 95 % intervals above 0: among all tokens than token identity, shuffled gates and the "
    "untrained model; and among the same token elsewhere than chance, shuffled gates and the "
    "untrained model; not supported if in no model; otherwise undecided",
    "C10": "supported if in every layer of every run more than 0.9 of the experts were ever used "
    "(in training steps that were logged, or on held-out text at the end); not supported if less "
    "than 0.5 in some layer of more than half of the runs; otherwise undecided",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A verdict and the numbers that it stands on, in words."""

    verdict: str
    measured: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedEffect:
    """What patching the noun's gates did in one model."""

    accuracy: float
    best_layer: int
    nie: float
    gaps: Mapping[str, float]
    """By control: the effect of the noun's gates minus the control's, in the best layer."""
    gap_lows: Mapping[str, float]
    """The lower ends of their intervals."""

    @property
    def knows(self) -> bool:
        """Whether it knows the facts."""
        return self.accuracy >= KNOWN

    @property
    def shows(self) -> bool:
        """Whether it knows them and its noun's gates do more than every control."""
        return self.knows and all(low > 0 for low in self.gap_lows.values())


def judge_active(shares: Mapping[int, float], experts_alone: Mapping[int, float]) -> Finding:
    """Judge C5 from the active shares at the published sizes."""
    below = [size for size, share in shares.items() if share < ACTIVE_SHARE]
    alone = [size for size, share in experts_alone.items() if share < ACTIVE_SHARE]
    measured = (
        f"{100 * min(shares.values()):.2f} to {100 * max(shares.values()):.2f} % at the published "
        f"sizes {min(shares)} to {max(shares)}; of the experts alone "
        f"{100 * min(experts_alone.values()):.3f} to {100 * max(experts_alone.values()):.3f} %, "
        f"below 0.1 % at sizes {', '.join(map(str, alone)) or 'none'}"
    )
    return Finding(verdict=_all_none(len(below), len(shares)), measured=measured)


def judge_linearity(errors: Mapping[str, float], num_models: int) -> Finding:
    """Judge C6 from the worst errors by kind."""
    parts = ", ".join(f"{kind} {error:.1e}" for kind, error in errors.items())
    verdict = SUPPORTED if max(errors.values()) < MAX_ERROR else NOT_SUPPORTED
    return Finding(verdict=verdict, measured=f"largest errors of {num_models} models: {parts}")


def judge_clusters(shown: Sequence[bool], num_beyond: int, num_layers: int) -> Finding:
    """Judge C7 from whether each model has a layer that shows it.

    Args:
        shown: by model.
        num_beyond: layers that `isoflop interpret geometry` calls beyond token identity in word
            class: there either pool of neighbours is enough. It decides nothing here.
        num_layers: of all models.
    """
    measured = (
        f"shown by {sum(shown)} of {len(shown)} models; {num_beyond} of {num_layers} layers are "
        "beyond token identity among other tokens or among the same token"
    )
    return Finding(verdict=_all_none(sum(shown), len(shown)), measured=measured)


def judge_usage(least: Sequence[float]) -> Finding:
    """Judge C10 from each run's least used layer."""
    num_collapsed = sum(share < COLLAPSED for share in least)
    num_used = sum(share > USED for share in least)
    if num_used == len(least):
        verdict = SUPPORTED
    else:
        verdict = NOT_SUPPORTED if num_collapsed > len(least) / 2 else UNDECIDED
    measured = (
        f"least used layer of each of {len(least)} runs: {min(least):.3f} to {max(least):.3f} of "
        f"the experts; above {USED} in {num_used} runs, below {COLLAPSED} in {num_collapsed}"
    )
    return Finding(verdict=verdict, measured=measured)


def judge_c8(seeds: Sequence[SeedEffect]) -> Finding:
    """Judge C8 from the models of one kind."""
    knowing = [seed for seed in seeds if seed.knows]
    num_showing = sum(seed.shows for seed in seeds)
    pooled = pooled_gaps(knowing)
    above = bool(pooled) and all(low > 0 for _, low, _ in pooled.values())
    if num_showing >= MOST_SEEDS and above:
        verdict = SUPPORTED
    else:
        refuted = len(knowing) >= MOST_SEEDS and num_showing <= FEWEST_SEEDS
        verdict = NOT_SUPPORTED if refuted else UNDECIDED
    parts = "; ".join(
        f"{control} {mean:.3f} ({low:.3f} to {high:.3f})"
        for control, (mean, low, high) in pooled.items()
    )
    nies = ", ".join(f"{seed.nie:.3f}" for seed in seeds)
    measured = (
        f"{len(knowing)} of {len(seeds)} seeds know the facts, {num_showing} show it; NIE in the "
        f"best layer by seed {nies}; mean gaps above {parts or 'none'}"
    )
    return Finding(verdict=verdict, measured=measured)


def judge_c8_layer(seeds: Sequence[SeedEffect]) -> Finding:
    """Judge C8-layer from the models of four layers."""
    num_second = sum(seed.best_layer == 1 for seed in seeds)
    verdict = UNDECIDED
    if sum(seed.knows for seed in seeds) >= MOST_SEEDS:
        if num_second >= MOST_SEEDS:
            verdict = SUPPORTED
        elif num_second <= FEWEST_SEEDS:
            verdict = NOT_SUPPORTED
    best = ", ".join(str(seed.best_layer + 1) for seed in seeds)
    return Finding(verdict=verdict, measured=f"best layer (from 1) by seed: {best}")


def pooled_gaps(seeds: Sequence[SeedEffect]) -> dict[str, tuple[float, float, float]]:
    """Return by control the mean over seeds and its 95 % interval (Student's); none of one seed."""
    from scipy.stats import t

    if len(seeds) < 2:
        return {}
    found = {}
    for control in seeds[0].gaps:
        values = [seed.gaps[control] for seed in seeds]
        mean = math.fsum(values) / len(values)
        spread = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        half = float(t.ppf(0.975, len(values) - 1)) * math.sqrt(spread / len(values))
        found[control] = (mean, mean - half, mean + half)
    return found


def _all_none(num: int, total: int) -> str:
    if num == total:
        return SUPPORTED
    return NOT_SUPPORTED if num == 0 else UNDECIDED
