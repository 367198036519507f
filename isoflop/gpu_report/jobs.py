"""What the command runs: its stages, their shares of the budget, and the jobs of each in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from isoflop.gpu_report.records import Job
from isoflop.gpu_report.schedule import Stage

SHARES = {
    # Until torch is imported from a cold disk; what is left of it is everyone's.
    "machine": 60.0,
    "compile": 100.0,
    "numerics": 50.0,
    "kernels": 120.0,
    "steps": 150.0,
    "losses": 60.0,
}
"""Seconds of a budget of DEFAULT_BUDGET_S."""
DEFAULT_BUDGET_S = sum(SHARES.values())

SCALES = (6, 2, 8)
"""Of the paper: the one that plans are made for first."""
NUM_TOKENS = 131072
EAGER_TOKENS = 8192
"""The eager gather writes every row, which would not fit the memory for more."""
VERSIONS = {"bfloat16": ("triton-v1", "triton-v2"), "float32": ("triton-v1",)}
"""v2 multiplies on tensor cores, and is never taken in float32."""
MODELS = (("sgatlin", 6), ("sgatlin", 4), ("swiglu", 4))
MODES: dict[str, dict[str, Any]] = {
    "uncompiled": {"head": "tf32"},
    "compiled": {"head": "tf32", "compile": True},
    "fp32 head": {"head": "fp32"},
    "bf16 head": {"head": "bf16"},
}
"""As `isoflop run` trains on a GPU it is compiled; what differs is named."""
_CHECKED = (
    *("product_key_topk triton", "gathered_linear triton-v1", "gathered_linear triton-v2"),
    *("gathered_linear bag", "gathered_linear reference", "product_key_topk bag", "registration"),
)
# gpt-2's, a begin and an end.
_VOCABULARY = 50258


def stages(device: str, facts: Mapping[str, Any]) -> list[Stage]:
    """Return the stages after the first, in order.

    Args:
        device: `cuda`, or `cpu` for a rehearsal of tiny shapes.
        facts: rates that the first stage measured.
    """
    made = _Jobs(device, facts)
    return [
        Stage(name="compile", jobs=[*made.compile()]),
        Stage(name="numerics", jobs=[*made.numerics("numerics")]),
        Stage(name="kernels", jobs=[*made.kernels()]),
        Stage(name="steps", jobs=[*made.steps()]),
        Stage(name="losses", jobs=[*made.losses()]),
    ]


def first_stage() -> Stage:
    """Return the stage that says what the machine is."""
    job = Job(stage="machine", case="machine", kind="machine", limit_s=60.0)
    return Stage(name="machine", jobs=[job])


class _Jobs:
    def __init__(self, device: str, facts: Mapping[str, Any]) -> None:
        self._facts = facts
        self._rehearsal = device == "cpu"

    def compile(self) -> Iterator[Job]:
        """Yield whatever compiles kernels, what takes longest first."""
        for family, rung in self._models():
            values = self._model(family, rung) | {"mode": MODES["uncompiled"]}
            name = f"{family}-{rung}"
            if not self._rehearsal:
                values_compiled = values | {"mode": MODES["compiled"], "facts": self._facts}
                case = f"{name} by torch.compile"
                yield self._job("compile", case, "warm_compiled", 100, values_compiled)
            yield self._job("compile", f"{name}, one layer", "warm_step", 60, values)
        for scale in SCALES[: 1 if self._rehearsal else None]:
            for dtype, versions in VERSIONS.items():
                for version in versions:
                    values = {
                        "shape": self._shape(scale, num_tokens=1024),
                        "dtype": dtype,
                        "contender": version,
                    }
                    case = f"scale {scale} {dtype} {version}"
                    yield self._job("compile", case, "warm", 60, values)
        if not self._rehearsal:
            yield from self.numerics("compile")

    def numerics(self, stage: str) -> Iterator[Job]:
        """Yield the checks: quick ones in float32, then some shapes in half precision."""
        for titles in ("gathered_linear bag",) if self._rehearsal else _CHECKED:
            yield self._job(stage, f"{titles} float32", "check", 40, {"titles": titles})
        for dtype in ("bfloat16", "float16")[: 1 if self._rehearsal else None]:
            for version in VERSIONS["bfloat16"]:
                values = {"contender": version, "dtype": dtype}
                yield self._job(stage, f"{version} {dtype}", "numbers", 40, values)

    def kernels(self) -> Iterator[Job]:
        """Yield the contenders, those of one shape and type beside each other."""
        for scale in SCALES[: 1 if self._rehearsal else None]:
            for dtype, versions in VERSIONS.items():
                for contender in (*versions, "mlp", "reference"):
                    num_tokens = EAGER_TOKENS if contender == "reference" else NUM_TOKENS
                    values = {
                        "shape": self._shape(scale, num_tokens),
                        "dtype": dtype,
                        "contender": contender,
                        "facts": self._facts,
                    }
                    case = f"scale {scale} {dtype} {contender}"
                    yield self._job("kernels", case, "kernel", 30, values)

    def steps(self) -> Iterator[Job]:
        """Yield every model as it is, then every model in the next mode."""
        for mode, settings in MODES.items():
            for family, rung in self._models():
                # The compiler takes longer than all the rest of a rehearsal, and a CPU has no TF32.
                if self._rehearsal and (settings.get("compile") or mode == "fp32 head"):
                    continue
                values = self._model(family, rung)
                values |= {"mode": settings, "facts": self._facts}
                limit_s = 75 if settings.get("compile") else 40
                yield self._job("steps", f"{family}-{rung} {mode}", "step", limit_s, values)

    def losses(self) -> Iterator[Job]:
        """Yield the comparison of losses, in both precisions."""
        values: dict[str, Any] = {"family": "sgatlin", "recipe": "micro-v2", "rung": 12}
        values |= {"seq_len": 128, "micro_batch": 8, "vocab_size": 260, "num_steps": 100}
        if self._rehearsal:
            values |= _tiny("sgatlin") | {"num_steps": 3}
        for precision in ("fp32", "bf16")[: 1 if self._rehearsal else None]:
            case = f"sgatlin, {values['num_steps']} steps, {precision}"
            yield self._job("losses", case, "losses", 60, values | {"precision": precision})

    def _job(
        self, stage: str, case: str, kind: str, limit_s: float, values: Mapping[str, Any]
    ) -> Job:
        return Job(stage=stage, case=case, kind=kind, limit_s=limit_s, values=dict(values))

    def _shape(self, scale: int, num_tokens: int) -> dict[str, Any]:
        width, num_keys = {2: (256, 40), 6: (768, 88), 8: (1024, 112)}[scale]
        shape = {"T": num_tokens, "D": width, "C": 16, "K": 8, "N": num_keys}
        if self._rehearsal:
            shape = {"T": 2, "D": 16, "C": 2, "K": 2, "N": 3}
        return {"name": f"scale-{scale}"} | shape

    def _models(self) -> tuple[tuple[str, int], ...]:
        return MODELS[1:] if self._rehearsal else MODELS

    def _model(self, family: str, rung: int) -> dict[str, Any]:
        values = {
            "family": family,
            "rung": rung,
            "recipe": "paper-v1",
            "precision": "bf16",
            "seq_len": 2048,
            "micro_batch": 16,
            "vocab_size": _VOCABULARY,
            "num_warm_up": 2,
            "num_steps": 3,
        }
        if self._rehearsal:
            values |= {"precision": "fp32", "vocab_size": 32} | _tiny(family)
        return values


def _tiny(family: str) -> dict[str, Any]:
    """Return a model that the interpreter trains in a second."""
    values: dict[str, Any] = {"recipe": "micro-v2", "rung": 1, "n_layers": 1}
    values |= {"seq_len": 4, "micro_batch": 2, "num_warm_up": 0, "num_steps": 1}
    if family == "sgatlin":
        values["config"] = {
            "num_channels": 1,
            "num_neighbours": 2,
            "num_experts": 9,
            "router_width": 4,
        }
    return values


def shares(only: str | None) -> dict[str, float]:
    """Return the share of each stage; of one alone, all but what knowing the machine takes."""
    if only is None or only == "machine":
        return dict(SHARES) if only is None else {"machine": SHARES["machine"]}
    rest = sum(SHARES.values()) - SHARES["machine"]
    return {"machine": SHARES["machine"], only: rest}
