"""The hardware profile that predictions for this machine are made with. Imports no torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from isoflop.plan.estimate.hardware import Hardware, hardware_names
from isoflop.resources import read_profile

# Names of GPUs as torch gives them, of which a built-in profile holds: whole boards of one kind. A
# part of a GPU (MIG) and boards with other clocks have names of their own.
_PROFILES = {
    r"NVIDIA H200": "h200",
    r"NVIDIA H100 80GB HBM3": "h100",
    r"NVIDIA A100-SXM4-80GB": "a100",
    r"AMD Instinct MI300X.*": "mi300x",
}
# Whose assumptions an unknown GPU shares, where nothing was measured.
_LIKE = "h100"


def load_profile(name: str) -> Hardware:
    """Return a built-in profile; unlike `load_hardware`, which checks, it needs no pydantic."""
    return Hardware(**read_profile("hardware", name, hardware_names(), "hardware_"))


def built_in_profile(gpu: str) -> Hardware | None:
    """Return the built-in profile of a GPU by its name; None: there is none."""
    for pattern, profile in _PROFILES.items():
        if re.fullmatch(pattern, gpu) and profile in hardware_names():
            return load_profile(profile)
    return None


def hardware_of(facts: Mapping[str, Any]) -> Hardware:
    """Return the built-in profile of this machine's GPU, or one of the rates that were measured.

    Args:
        facts: what the first stage found: the GPU's `name`, its `memory` and `cache` in bytes,
            `copy` in bytes per second, and FLOP/s of products by precision. All may be missing.
    """
    known = built_in_profile(str(facts.get("name")))
    profile = known or load_profile(_LIKE)
    profile = dataclasses.replace(
        profile, memory_bytes=int(facts.get("memory", profile.memory_bytes))
    )
    if known is not None:
        return profile
    rates = {
        name: float(facts.get(name, rate)) for name, rate in profile.matmul_flops_per_s.items()
    }
    return dataclasses.replace(
        profile,
        name="measured here",
        matmul_flops_per_s=rates,
        memory_bytes_per_s=float(facts.get("copy", profile.memory_bytes_per_s)),
        # The measured rate is what streams reach.
        memory_efficiency=1.0 if "copy" in facts else profile.memory_efficiency,
        l2_bytes=int(facts.get("cache", profile.l2_bytes)),
    )
