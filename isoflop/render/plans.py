"""One run whole, estimates, and the difference of two plans, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from isoflop.numbers import format_count, format_flops, format_seconds
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun
from isoflop.recipe import get_recipe
from isoflop.spec import shown_id

if TYPE_CHECKING:
    from isoflop.plan.edit import PlanDiff
    from isoflop.plan.estimate import PlanEstimate, RunEstimate

# A longer list says how many more there are; plan.json has them all.
_MAX_LISTED = 40


def run_lines(entries: Sequence[PlannedRun]) -> list[str]:
    """Return one run whole: what it is, its places in the plan, its counts, every component."""
    run = entries[0]
    spec = run.spec.to_json()
    config = spec.pop("config")
    lines = [f"run {run.run_id}", "", "in the plan as"]
    lines += [
        f"  {entry.arch} size {entry.size} at {format_flops(entry.budget_flops)}: "
        f"{format_flops(entry.flops)} FLOPs, {100 * entry.residual:.3f} % of the budget unspent"
        for entry in entries
    ]
    lines += ["", "what it is (hashed into its id)", *_aligned(spec)]
    lines += [f"  {spec['family']} configuration", *_aligned(config, indent=4)]
    lines += ["", "counts", *_aligned(_counts(run))]
    lines += ["", "forward FLOPs per token", *_component_lines(run.flops_per_token)]
    warnings = list(dict.fromkeys(text for entry in entries for text in entry.warnings))
    if warnings:
        lines += ["", *(f"warning: {text}" for text in warnings)]
    return lines


def _counts(run: PlannedRun) -> dict[str, str]:
    return {
        "parameters": _exact(run.n_params),
        "active": _exact(run.n_active),
        "non-embedding": _exact(run.n_nonembed),
        "training tokens": _exact(run.n_tokens),
        "training FLOPs": f"{run.flops:,}",
        "epochs": "not known" if run.epochs is None else f"{run.epochs:g}",
    }


def _exact(count: int) -> str:
    return f"{count:,} ({format_count(count)})"


def _aligned(values: dict[str, Any], indent: int = 2) -> list[str]:
    width = max((len(name) for name in values), default=0)
    return [f"{'':{indent}}{name:<{width}}  {value}" for name, value in values.items()]


def _component_lines(flops_per_token: dict[str, int]) -> list[str]:
    total = sum(flops_per_token.values())
    rows = [*flops_per_token.items(), ("total", total)]
    width = max(len(name) for name, _ in rows)
    digits = len(f"{total:,}")
    return [
        f"  {name:<{width}}  {flops:>{digits},}  {100 * flops / total:6.2f} %"
        for name, flops in rows
    ]


def rate_lines(plan: Plan) -> list[str]:
    """Return one line with the peak learning rates of a study that sets its own; else none."""
    study = plan.study
    rates = {arch: rate for arch, rate in study.learning_rates.items() if arch in study.archs}
    if not rates:
        return []
    own = get_recipe(study.recipe).peak_lr
    rest = f", else {own:g}" if len(rates) < len(study.archs) else ""
    given = ", ".join(f"{arch} {rate:g}" for arch, rate in rates.items())
    return [f"peak learning rates: {given}{rest} ({study.recipe} has {own:g})"]


def estimate_lines(estimate: RunEstimate) -> list[str]:
    """Return what one run is estimated to take."""
    from isoflop.plan.estimate.memory import format_bytes

    placement = estimate.placement
    known: dict[str, Any] = {
        "placement": placement.reason,
        "layout": f"{placement.num_devices} × {placement.parallel}, micro-batch "
        f"{placement.micro_batch}, {placement.grad_accum} accumulated, checkpointing "
        + ("on" if placement.checkpointing else "off"),
        "peak memory": f"{format_bytes(estimate.peak_mem_bytes)} per device",
    }
    if estimate.step_s is not None and estimate.gpu_hours is not None:
        known["step"] = f"{estimate.step_s:.3g} s ({estimate.source})"
        known["all steps"] = f"{estimate.gpu_hours:,.3g} device-hours"
    parts = {name: f"{1000 * seconds:,.3g} ms" for name, seconds in estimate.parts.items()}
    memory = {name: format_bytes(size) for name, size in estimate.memory.parts().items()}
    other = "without" if placement.checkpointing else "with"
    memory["activations"] += (
        f" ({format_bytes(estimate.memory_other.activations)} {other} checkpointing)"
    )
    return [
        "estimates",
        *_aligned(known),
        "  memory per device by part (not all alive at once)",
        *_aligned(memory, indent=4),
        "  roofline per step",
        *_aligned(parts, indent=4),
    ]


def explain_lines(plan: Plan, estimate: PlanEstimate | None) -> list[str]:
    """How every number of the plan comes about: what is exact, and what each estimate assumes."""
    lines = [
        "exact",
        f"  FLOPs: matrix products under the {plan.study.convention} convention; steps are as many "
        "whole ones as the budget pays for, the residual is what is left",
        "  parameters, tokens: counted from the shapes; epochs: tokens over those of the corpus",
        "estimates",
    ]
    if plan.expected:
        prior = get_recipe(plan.study.recipe).prior
        lines.append(
            f"  expected optima: {prior.tokens_per_param:g} tokens per active parameter outside "
            f"embedding and norms, at every budget ({prior.source})"
        )
    if estimate is None:
        lines.append("  time, memory and money: none (plan or show with --hardware)")
        return lines
    return lines + [f"  {estimate.hardware}: {text}" for text in estimate.assumptions]


def total_lines(estimate: PlanEstimate) -> list[str]:
    """Return what the whole plan is estimated to take."""
    cost = "" if estimate.cost is None else f", {estimate.cost:,.4g} at the price given"
    measured = (
        f"step times of {estimate.num_calibrated} of {len(estimate.runs)} runs measured"
        if estimate.num_calibrated
        else "nothing measured"
    )
    # Fractions of an hour are hard to picture.
    short = f" ({format_seconds(3600 * estimate.gpu_hours)})" if estimate.gpu_hours < 1 else ""
    return [
        f"estimate on {estimate.hardware}: {estimate.gpu_hours:,.4g} {estimate.unit}{short}{cost}; "
        f"{measured} (isoflop show --explain)",
        *(f"does not fit: {line}" for line in estimate.not_fitting),
    ]


def diff_lines(difference: PlanDiff, conventions: tuple[str, str]) -> list[str]:
    """Return a difference of two plans as lines: study, runs, cost."""
    if difference.is_empty:
        return [f"the same plan, {len(difference.same)} runs"]
    lines = [
        f"study.{name}: {_study_value(name, before)} -> {_study_value(name, after)}"
        for name, before, after in difference.study
    ]
    lines += _listed(_changed_lines(difference))
    for sign, runs in (("-", difference.removed), ("+", difference.added)):
        lines += _listed(
            [_run_line(sign, run, run.run_id in difference.common_ids) for run in runs]
        )
    lines.append(
        f"{len(difference.same)} runs unchanged, {len(difference.changed)} changed, "
        f"{len(difference.added)} added, {len(difference.removed)} removed"
    )
    return lines + _cost_lines(difference, conventions)


def _changed_lines(difference: PlanDiff) -> list[str]:
    return [
        f"~ {_what(change.after)}: {shown_id(change.before.run_id)} -> "
        f"{shown_id(change.after.run_id)} ({', '.join(change.fields)})"
        for change in difference.changed
    ]


def _run_line(sign: str, run: PlannedRun, is_common: bool) -> str:
    note = "  (in both plans, under another label)" if is_common else ""
    flops = format_flops(run.flops, digits=3)
    return f"{sign} {_what(run)}: {shown_id(run.run_id)}, {flops} FLOPs{note}"


def _what(run: PlannedRun) -> str:
    budget = format_flops(run.budget_flops)
    return f"{budget} {run.arch} size {run.size} seed {run.spec.seed}"


def _listed(lines: list[str]) -> list[str]:
    if len(lines) <= _MAX_LISTED:
        return lines
    return [*lines[:_MAX_LISTED], f"{lines[0][0]} … and {len(lines) - _MAX_LISTED} more"]


def _study_value(name: str, value: Any) -> str:
    """Return an entry of the study as a person would type it, budgets as 1e17."""
    if name == "budgets":
        value = [format_flops(budget, digits=17) for budget in value]
    if name in ("sizes", "more_seeds") and isinstance(value, dict):
        return "; ".join(
            f"{format_flops(int(budget), digits=17)}: {_study_value('', by_arch)}"
            for budget, by_arch in value.items()
        )
    if isinstance(value, list) and not any(isinstance(entry, dict) for entry in value):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return "none" if value in (None, []) else str(value)


def _flops(flops: int) -> str:
    return format_flops(flops, digits=4) if flops else "0"


def _cost_lines(difference: PlanDiff, conventions: tuple[str, str]) -> list[str]:
    before, after = difference.flops
    shown = [_flops(flops) for flops in (before, after)]
    if conventions[0] != conventions[1]:
        lines = [
            f"training FLOPs: {shown[0]} ({conventions[0]}) -> {shown[1]} ({conventions[1]}); two "
            "conventions do not compare"
        ]
    else:
        sign = "+" if after >= before else "-"
        lines = [f"training FLOPs: {shown[0]} -> {shown[1]} ({sign}{_flops(abs(after - before))})"]
    lines.append(f"to train that the first plan does not have: {_flops(difference.new_flops)}")
    if difference.gpu_hours is not None:
        old, new = difference.gpu_hours
        lines.append(f"device-hours (estimates): {old:,.1f} -> {new:,.1f} ({new - old:+,.1f})")
    return lines
