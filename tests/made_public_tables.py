"""Tables of runs as people publish them, small, from one known surface.

L = 1.7 + 400 / N^0.34 + 410 / D^0.28 (nats per token): at C FLOPs, 6 · N · D = C, the best size is
N* = G · (C / 6)^(0.28 / 0.62).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

E, A, B, ALPHA, BETA = 1.7, 400.0, 410.0, 0.34, 0.28
EXPONENT = BETA / (ALPHA + BETA)
BUDGETS = (1e17, 4e17, 1.6e18)
SIZES = 7
SPAN = 4.0


def loss_of(n: float, d: float) -> float:
    return E + A / n**ALPHA + B / d**BETA


def best_size(budget: float) -> float:
    scale = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return float(scale * (budget / 6) ** EXPONENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of the surface."""

    budget: float
    n: float
    d: float
    loss: float


def runs(budgets: Sequence[float] = BUDGETS) -> list[Run]:
    found = []
    for budget in budgets:
        for place in np.linspace(-1, 1, SIZES):
            n = float(f"{best_size(budget) * SPAN**place:.4g}")
            d = budget / (6 * n)
            found.append(Run(budget=budget, n=n, d=d, loss=loss_of(n, d)))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A made table: what is typed for it, and what it should give."""

    source: str
    options: tuple[str, ...] = ()
    """Of `isoflop import`."""
    fit_options: tuple[str, ...] = ()
    num_runs: int = len(BUDGETS) * SIZES
    has_budgets: bool = True
    unit: str = "nats_per_token"
    scale_of_loss: float = 1.0
    """Its losses over those of the surface."""


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    table = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return str(path)


def wide_wandb_chart(folder: Path) -> Published:
    """A chart of W&B as csv: a column a run, whose name has the budget and the size."""
    made = runs()
    names = [f"dense-{run.budget:g}-N{run.n / 1e6:.6g}M" for run in made]
    rows: list[dict[str, Any]] = []
    for step in range(0, 101, 20):
        row: dict[str, Any] = {"Step": step}
        for place, (name, run) in enumerate(zip(names, made, strict=True)):
            # Runs end at different steps, where the chart has empty cells.
            left = 100 - step - 20 * (place % 2)
            value = "" if left < 0 else run.loss * (1 + left / 50)
            for ending in ("", "__MIN", "__MAX"):
                row[f"{name} - eval/loss{ending}"] = value
        rows.append(row)
    return Published(
        source=write_csv(folder / "wandb_export_2025.csv", rows),
        options=("--parse", "run={arch}-{budget_flops}-N{n_params}"),
    )


def json_a_run(folder: Path) -> Published:
    """A file a run, nested, on several lines; the FLOPs met scatter below the budgets."""
    scatter = np.random.default_rng(1).uniform(0.97, 1.0, len(runs()))
    for place, (run, met) in enumerate(zip(runs(), scatter.tolist(), strict=True)):
        content = {
            "name": f"run{place:02}",
            "dataset_name": "openlm",
            "hparams": {"params": int(run.n), "lr": "3e-4", "epochs": "1 epoch"},
            "tokens": run.d * met,
            "results": {"eval": {"loss": loss_of(run.n, run.d * met)}},
            "checkpoints": [1, 2, 3],
        }
        (folder / f"run_{place:02}.json").write_text(json.dumps(content, indent=2))
    return Published(
        source=str(folder / "run_*.json"),
        options=("--map", "loss=results.eval.loss", "--budget-from", "auto"),
    )


def budgets_in_names(folder: Path) -> Published:
    """W&B's table of runs: hundreds of columns, states, budgets in the names, one run crashed."""
    made = runs()
    junk = {f"config.junk_{i}": f"{i} epochs" for i in range(200)}
    rows = [
        {
            "Name": f"sweep_C{run.budget:g}_w{place}",
            "State": "finished",
            "Tags": "a, b",
            "_runtime": 12.5,
            "config.num_params": int(run.n),
            "total_tokens": run.d,
            "train/loss": run.loss - 0.05,
            "eval/loss": run.loss,
            **junk,
        }
        for place, run in enumerate(made)
    ]
    rows.append({**rows[0], "Name": "sweep_C1e+17_w99", "State": "crashed", "eval/loss": "NaN"})
    rows.append({**rows[0], "Name": "debug", "State": "finished", "eval/loss": 99.0})
    return Published(
        source=write_csv(folder / "runs.csv", rows),
        options=("--parse", "Name=sweep_C{budget_flops}_w{_}", "--where", "Name != debug"),
        num_runs=len(made) + 1,
    )


def grid_without_budgets(folder: Path) -> Published:
    """C, N, D, loss on a grid of sizes and tokens."""
    rows = [
        {"C": 6 * n * d, "N": n, "D": d, "loss": loss_of(n, d)}
        for n in np.geomspace(1e7, 1e9, 6)
        for d in np.geomspace(2e8, 2e10, 6)
    ]
    return Published(
        source=write_csv(folder / "grid.csv", rows), num_runs=len(rows), has_budgets=False
    )


def sweep_of_rates(folder: Path) -> Published:
    """Learning rates and batch sizes at each size; the best of each is the run that counts."""
    rows = [
        {
            "N": run.n,
            "D": run.d,
            "lr": rate,
            "bs": batch,
            "smooth loss": run.loss + 0.02 * math.log(rate / 3e-3) ** 2 + 0.001 * k,
        }
        for run in runs()
        for k, batch in enumerate((32, 64, 128))
        for rate in (1e-3, 3e-3, 1e-2)
    ]
    return Published(
        source=write_csv(folder / "steplaw.csv", rows),
        options=("--map", "loss=smooth loss", "--budget-from", "auto"),
        fit_options=("--repeats", "best"),
        num_runs=len(rows),
    )


def bits_per_byte(folder: Path) -> Published:
    """nanochat's results.csv: validation bits per byte, depth, iterations times tokens a batch."""
    batch = 524_288
    rows = [
        {
            "flops_budget": f"{run.budget:g}",
            "depth": 4 + place % SIZES,
            "model_dim": 64 * (4 + place % SIZES),
            "num_params": int(run.n),
            "num_iterations": run.d / batch,
            "total_batch_size": batch,
            "val_bpb": 0.3 * run.loss,
            "train_time_sec": 100,
        }
        for place, run in enumerate(runs())
    ]
    return Published(
        source=write_csv(folder / "results.csv", rows),
        options=("--arch-name", "nanochat"),
        unit="bits_per_byte",
        scale_of_loss=0.3,
    )


def gflops_thrice(folder: Path) -> Published:
    """marin's export: GFLOPs, counted three times, and the budget in the name."""
    rows = [
        {
            "name": f"isoflop-{run.budget:.1e}-d{512 + 128 * place}-L8",
            "parameter_count": int(run.n),
            "throughput/total_tokens": run.d,
            "throughput/total_gflops": 3 * run.budget / 1e9,
            "eval/loss": run.loss,
            "tags": '["isoflop", "dclm"]',
        }
        for place, run in enumerate(runs())
    ]
    return Published(
        source=write_csv(folder / "marin.csv", rows),
        options=(
            *("--parse", "name=isoflop-{budget_flops}-d{_}"),
            *("--map", "flops=throughput/total_gflops / 3"),
        ),
    )


def index_columns(folder: Path) -> Published:
    """What pandas leaves behind: indices as columns, here and from the table before."""
    rows = [
        {
            "": place,
            "Unnamed: 0": place,
            "level_0": place,
            "arch": "dense",
            "budget": run.budget,
            "params": run.n,
            "tokens": run.d,
            "val_loss": run.loss,
        }
        for place, run in enumerate(runs())
    ]
    return Published(source=write_csv(folder / "index.csv", rows))


def strings_with_units(folder: Path) -> Published:
    """Numbers as people write them, and a cell that is none."""
    rows = [
        {
            "Model": "dense",
            "Parameters": f"{run.n / 1e6:.4f}M",
            "Training tokens": f"{round(run.d):,}",
            "Budget": f"{run.budget / 1e15:g}",
            "Loss": f" {run.loss:.5f} ",
            "MFU": "41 %",
        }
        for run in runs()
    ]
    rows.append({**rows[0], "Loss": "OOM"})
    return Published(
        source=write_csv(folder / "units.csv", rows),
        options=("--map", "budget_flops=Budget * 1e15", "--arch", "Model"),
        num_runs=len(rows),
    )


def steps_of_runs(folder: Path) -> Published:
    """A csv a run, its steps as rows, evaluated at some of them (OLMo's ladder)."""
    for place, run in enumerate(runs()):
        rows = []
        for step in range(1, 11):
            done = step / 10
            evaluated = step % 2 == 0
            rows.append(
                {
                    "_step": step * 100,
                    "throughput/total_tokens": run.d * done,
                    "learning_rate_peak": 3e-4,
                    "num_params": run.n if step == 1 else "",
                    "eval/loss": loss_of(run.n, run.d * done) if evaluated else "",
                }
            )
        write_csv(folder / f"size{place % SIZES}-{run.budget:.1e}.csv", rows)
    return Published(
        source=str(folder / "size*.csv"),
        options=("--parse", "source_file=size{_}-{budget_flops}"),
    )


def tokens_alone(folder: Path) -> Published:
    """Points read off a figure, as of Llama 3: budget, tokens, loss in bits."""
    rows = [
        {
            "compute_budget": run.budget,
            "training_tokens": run.d,
            "validation_loss": run.loss / math.log(2),
        }
        for run in runs()
    ]
    return Published(
        source=write_csv(folder / "llama.csv", rows),
        options=("--loss-unit", "bits_per_token"),
        unit="bits_per_token",
        scale_of_loss=1 / math.log(2),
    )


def svg_points(folder: Path) -> Published:
    """Points of Chinchilla's figure, as Epoch published them: no budgets, no tokens."""
    rows = [
        {"Model Size": n, "Training FLOP": 6 * n * d, "loss": loss_of(n, d)}
        for n in np.geomspace(5e7, 5e9, 7)
        for d in n * np.array([2.0, 6.0, 20.0, 60.0, 200.0])
    ]
    return Published(
        source=write_csv(folder / "svg_extracted_data.csv", rows),
        num_runs=len(rows),
        has_budgets=False,
    )


TABLES: dict[str, Callable[[Path], Published]] = {
    make.__name__: make
    for make in (
        *(wide_wandb_chart, json_a_run, budgets_in_names, grid_without_budgets, sweep_of_rates),
        *(bits_per_byte, gflops_thrice, index_columns, strings_with_units, steps_of_runs),
        *(tokens_alone, svg_points),
    )
}
