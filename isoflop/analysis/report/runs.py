"""What a report says of the runs: all of them, and the mean losses of families of one size each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from isoflop.analysis.compare.claims import claimed_note, order
from isoflop.analysis.compare.one_size import (
    JointClaim,
    PairedLoss,
    SeedMeanRow,
    claim_together,
    seed_means,
)
from isoflop.analysis.points import Excluded, Point
from isoflop.analysis.report.document import (
    ARCH,
    BUDGET,
    Block,
    Column,
    Picture,
    Section,
    count_column,
    interval,
    label_column,
    loss_column,
    number_column,
    perplexity_columns,
    table,
    text_column,
)
from isoflop.analysis.report.source import Source
from isoflop.analysis.result import Fits, default_reference, excluded_note
from isoflop.numbers import format_flops
from isoflop.tables import METRIC
from isoflop.units import UNITS, has_perplexity, loss_heading, loss_name


def runs_section(fits: Fits) -> Section:
    """Return every run: those that entered the fits, and those excluded, each with its reason."""
    points = [point for group in fits.groups.values() for point in group]
    columns = [
        ARCH,
        BUDGET,
        count_column("n_params", "Parameters"),
        count_column("n_active", "Active"),
        count_column("n_tokens", "Tokens"),
        number_column("seed", "Seed"),
        loss_column("loss", loss_heading(fits.unit), fits.unit),
        *perplexity_columns(fits.unit),
        *_metric_columns(fits),
        number_column("wall_s", "Time (s)"),
        label_column("run", "Run"),
    ]
    blocks: list[Block] = [excluded_note(fits)]
    if fits.excluded:
        blocks.append(_excluded_table(fits.excluded, fits.unit))
    blocks += _metric_blocks(fits)
    if points or not fits.selection.loose:
        rows = [_run_row(point, fits.unit) for point in points]
        blocks.append(table("Runs in the fits", columns, rows))
    if fits.selection.loose:
        loose = [{**_run_row(p, fits.unit), "budget_flops": None} for p in fits.selection.loose]
        blocks.append(table("Runs without a budget, in laws over all runs only", columns, loose))
    return Section(key="runs", title="Runs", blocks=tuple(blocks))


def _metric_names(fits: Fits) -> list[str]:
    """Return the further numbers that runs reported, sorted."""
    points = [point for group in fits.groups.values() for point in group]
    return sorted({name for point in points for name in point.metrics})


def _metric_columns(fits: Fits) -> list[Column]:
    return [number_column(f"{METRIC}{name}", name) for name in _metric_names(fits)]


def _metric_blocks(fits: Fits) -> list[Block]:
    """Return the metrics of the best run of each family and budget; nothing without any."""
    metrics = _metric_columns(fits)
    if not metrics:
        return []
    columns = [
        ARCH,
        BUDGET,
        count_column("n_params", "Parameters"),
        loss_column("loss", loss_heading(fits.unit), fits.unit),
        *metrics,
    ]
    best = [min(group, key=lambda point: point.loss) for group in fits.groups.values() if group]
    rows = [_run_row(point, fits.unit) for point in best]
    caption = f"Metrics of the run of lowest {loss_name(fits.unit)} of each family and budget"
    return [table(caption, columns, rows)]


def _run_row(point: Point, unit: str) -> dict[str, Any]:
    return {
        **{f"{METRIC}{name}": value for name, value in point.metrics.items()},
        "arch": point.arch,
        "budget_flops": point.budget_flops,
        "n_params": point.n_params,
        "n_active": point.n_active,
        "n_tokens": point.n_tokens,
        "seed": point.seed,
        "loss": point.loss,
        "perplexity": math.exp(point.loss) if has_perplexity(unit) else None,
        "wall_s": point.wall_s,
        "run": None if point.run_id is None else point.run_id[:12],
    }


def _excluded_table(rows: Sequence[Excluded], unit: str) -> Block:
    columns = [
        ARCH,
        BUDGET,
        count_column("n_params", "Parameters"),
        loss_column("loss", loss_heading(unit), unit),
        text_column("reason", "Reason"),
        label_column("detail", "Detail"),
        label_column("run", "Run"),
    ]
    return table(
        "Excluded runs",
        columns,
        [
            {
                "arch": row.arch,
                "budget_flops": row.budget_flops,
                "n_params": row.n_params,
                "loss": row.loss,
                "reason": row.reason,
                "detail": row.detail,
                "run": None if row.run_id is None else row.run_id[:12],
            }
            for row in rows
        ],
    )


def reference_of(fits: Fits, source: Source) -> str | None:
    """Return the reference asked for, else the study's first arch, else the default one."""
    stated: Sequence[str] = (source.study or {}).get("archs", ())
    known = [arch for arch in stated if arch in fits.archs]
    return fits.options.reference or next(iter(known), default_reference(fits.archs))


def shape_sentences(pairs: Sequence[PairedLoss], confidence: float, unit: str) -> list[str]:
    """Return what each comparison says, after how many of them are claimed."""
    claims = claim_together(pairs, confidence)
    num = sum(bool(pair.log_ratios) for pair in pairs)
    claimed = sum(claim.order != "none" for claim in claims)
    start = [claimed_note(claimed, num, "differences of losses", confidence)] if num else []
    return start + [
        _shape_sentence(pair, claim, confidence, unit)
        for pair, claim in zip(pairs, claims, strict=True)
    ]


def _shape_sentence(pair: PairedLoss, claim: JointClaim, confidence: float, unit: str) -> str:
    """Return what one comparison says.

    For example: "At 8e10 FLOPs sgatlin's loss is 1.20 % lower than peer's (95 % interval 0.50 to
    1.90 %, 3 shared seeds)."
    """
    start = f"At {format_flops(pair.budget_flops)} FLOPs {pair.arch}'s {loss_name(unit)}"
    low, high = pair.bounds
    if pair.ratio is None or low is None or high is None:
        return f"{start} is not compared with {pair.reference}'s: {pair.problem}."
    level = f"{100 * confidence:g} % interval"
    seeds = f"{len(pair.seeds)} shared seeds"
    side = claim.order
    if side == "none":
        span = f"{100 * (low - 1):+.2f} to {100 * (high - 1):+.2f} %"
        alone = "" if order(pair.bounds, 1.0) == "none" else " on its own, not with the others"
        return (
            f"{start} is not shown to differ from {pair.reference}'s "
            f"({level}{alone} {span}, {seeds})."
        )
    near, far = sorted(100 * abs(end - 1) for end in (low, high))
    return (
        f"{start} is {100 * abs(pair.ratio - 1):.2f} % {side} than {pair.reference}'s "
        f"({level} {near:.2f} to {far:.2f} %, {seeds})."
    )


def sizes_section(fits: Fits, pairs: Sequence[PairedLoss], reference: str) -> Section:
    """Return the mean losses over the seeds, and each as a ratio to the reference's."""
    ratio = "Loss" if fits.unit in UNITS else fits.unit
    columns = [
        ARCH,
        BUDGET,
        count_column("n_params", "Parameters"),
        count_column("n_tokens", "Tokens"),
        number_column("n_seeds", "Seeds"),
        loss_column("loss", loss_heading(fits.unit), fits.unit),
        loss_column("loss_sd", "SD of seeds", fits.unit),
        *perplexity_columns(fits.unit),
        loss_column("ratio", f"{ratio} / {reference}'s"),
        number_column("interval", "Interval"),
        number_column("interval_together", "For all together"),
        text_column("order_claimed", "Order claimed"),
        label_column("note", "Note"),
    ]
    rows = [
        {
            **asdict(row),
            "perplexity": math.exp(row.loss) if has_perplexity(fits.unit) else None,
            "interval": interval(row.ci_lo, row.ci_hi, "{:.4f}".format),
            "interval_together": interval(
                row.ci_lo_simultaneous, row.ci_hi_simultaneous, "{:.4f}".format
            ),
        }
        for row in seed_mean_rows(fits, pairs)
    ]
    same_text = "read the same text in the same order"
    if fits.has_own_trainer:
        same_text = f"{same_text} as far as the trainer's seed sees to it"
    words = (
        "Every family has one size at a budget, so there is no optimum, no law and no multiplier. "
        "Losses are geometric means over the seeds. A ratio compares runs of equal seed, which "
        f"{same_text}; its "
        f"{100 * fits.options.confidence:g} % interval is Student's, wide with few seeds. The "
        "intervals for all together hold at once for the whole table (Bonferroni), and an order is "
        "claimed where they leave out 1 or, by a later step of Holm's, end at it."
    )
    return Section(
        key="sizes",
        title="One size each",
        blocks=(
            words,
            Picture(stem="seed_means", caption="Losses of all seeds, and their means."),
            table("Mean losses", columns, rows),
        ),
    )


def seed_mean_rows(fits: Fits, pairs: Sequence[PairedLoss]) -> list[SeedMeanRow]:
    """Return the rows of seed_means.parquet, in natural order."""
    claims = claim_together(pairs, fits.options.confidence)
    by_key = {
        (pair.arch, pair.budget_flops): _against(pair, claim, fits)
        for pair, claim in zip(pairs, claims, strict=True)
    }
    return [
        SeedMeanRow(**asdict(mean), **by_key.get((mean.arch, mean.budget_flops), {}))
        for mean in seed_means(fits.selection)
    ]


def _against(pair: PairedLoss, claim: JointClaim, fits: Fits) -> dict[str, Any]:
    """Return the columns on the reference."""
    return {
        "reference": pair.reference,
        "ratio": pair.ratio,
        "ci_lo": pair.bounds[0],
        "ci_hi": pair.bounds[1],
        "ci_lo_simultaneous": claim.bounds[0],
        "ci_hi_simultaneous": claim.bounds[1],
        "n_shared": len(pair.seeds),
        "order_claimed": claim.order,
        "confidence": fits.options.confidence,
        "note": "; ".join(words for words in (pair.problem, pair.note) if words) or None,
    }
