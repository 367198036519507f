"""The runs of a trainer of one's own: each model is counted, and its steps follow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from isoflop.accounting.count import Count
from isoflop.code_folder import Code, changed, check_relative, code_changed, code_of
from isoflop.errors import UserError
from isoflop.numbers import format_flops, round_up
from isoflop.plan.count import CountRequest, count_many
from isoflop.plan.runs import COUNTED, OTHER, PlannedRun
from isoflop.spec import TrainerSpec, run_id
from isoflop.study import Study
from isoflop.study.trainer import ArchTable, DeclaredCount, Trainer, filled
from isoflop.validate import CLOSED


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCount:
    """What one model of a trainer costs, as it was counted or declared when it was planned."""

    __pydantic_config__: ClassVar = CLOSED

    arch: str
    size: int
    """Rung of the trainer's ladder."""
    count: Count


def count_models(study: Study, code_digest: str) -> tuple[PlannedCount, ...]:
    """Return what each model of the trainer costs; this imports its code, in a subprocess.

    Args:
        study: a study with a trainer.
        code_digest: of the code, by which counts are kept.

    Raises:
        UserError: a model cannot be built or counted.
    """
    trainer = _trainer(study)
    places = list(_places(study))
    asked = [_asked(trainer, study.trainer_arch(arch), size) for arch, size in places]
    counted = iter(
        count_many(
            [each for each in asked if isinstance(each, CountRequest)],
            folder=Path(trainer.code),
            timeout_s=trainer.count_timeout_s,
            digest=code_digest,
        )
    )
    return tuple(
        PlannedCount(
            arch=arch,
            size=size,
            # By module it is only for who asks.
            count=each
            if isinstance(each, Count)
            else dataclasses.replace(next(counted), modules=()),
        )
        for (arch, size), each in zip(places, asked, strict=True)
    )


def _trainer(study: Study) -> Trainer:
    assert study.trainer is not None
    return study.trainer


def _places(study: Study) -> Iterator[tuple[str, int]]:
    """Yield the models that a study trains: by arch, then by size.

    Raises:
        UserError: a size that is no rung of the ladder.
    """
    num_rungs = _trainer(study).num_rungs
    for arch in filter(study.has_trainer, study.archs):
        sizes = {size for budget in study.budgets for size in study.sizes_at(budget, arch) or ()}
        for size in sorted(sizes):
            if size > num_rungs:
                allowed = f"a rung of the trainer's ladder (1 to {num_rungs})"
                raise UserError("sizes", size, allowed, "correct it, or lengthen the ladder")
            yield arch, size


def _asked(trainer: Trainer, table: ArchTable, size: int) -> CountRequest | Count:
    """Return what is to be counted at a rung, or its count where it is declared."""
    count = trainer.count_of(table)
    if isinstance(count, DeclaredCount):
        # Numbers by rung, but for those that are left out.
        numbers = dataclasses.asdict(count).items()
        at_rung: dict[str, Any] = {name: n if n is None else n[size - 1] for name, n in numbers}
        return Count.declared_from(**at_rung, seq_len=trainer.seq_len)
    rung = trainer.rung_of(table, size)
    # A configuration's path may name the rung; a module takes it as arguments.
    target = filled(count, rung).format_map({})
    values = {} if count.startswith("hf:") else rung
    return CountRequest(
        target=target, values={**values, **table.count_with}, seq_len=trainer.seq_len
    )


def planned_code(study: Study) -> Code:
    """Return the code of a study's trainer as it is now, which its commands name relatively.

    Raises:
        UserError: no code, or a command that would run the folder itself in the place of a copy.
    """
    trainer = _trainer(study)
    folder = Path(trainer.code)
    code = code_of(folder, trainer.code_files)
    for arch in filter(study.has_trainer, study.archs):
        table = study.trainer_arch(arch)
        for text in trainer.command_of(table):
            check_relative(f"command of arch {arch}", text, folder, code)
        for name, text in trainer.env_of(table).items():
            check_relative(f"{name} of arch {arch}", text, folder, code)
    return code


def check_unchanged(code: Code | None, trainer: Trainer) -> Code:
    """Return the trainer's planned code, if that is what is there; nothing of it is imported.

    Raises:
        UserError: it is not, and which files differ; or what was planned is not known.
    """
    if code is None:
        allowed = "the files that were planned, by code.json beside the plan"
        raise UserError("trainer.code", trainer.code, allowed, "restore that file")
    # Whole: a relative one may be looked for from another folder than it was planned in.
    folder = Path(trainer.code).absolute()
    differences = changed(code.files, code_of(folder, trainer.code_files).files)
    if differences:
        raise code_changed(folder, differences)
    return code


def nearest_rungs(
    counts: Sequence[PlannedCount], arch: str, n_params: float, num_sizes: int
) -> tuple[int, ...]:
    """Return the rungs of an arch whose models are nearest to a number of parameters."""
    own = [each for each in counts if each.arch == arch]
    own.sort(key=lambda each: abs(math.log(each.count.n_params / n_params)))
    return tuple(sorted(each.size for each in own[:num_sizes]))


class OwnRuns:
    """The runs of a study's trainer, from its counts and the digest of its code."""

    def __init__(self, study: Study, counts: Sequence[PlannedCount], code_digest: str) -> None:
        self._study = study
        self._trainer = _trainer(study)
        self.counts = tuple(counts)
        self._counts = {(each.arch, each.size): each.count for each in counts}
        self._code_digest = code_digest

    def cell(self, budget_flops: int, arch: str) -> Iterator[PlannedRun]:
        """Yield all sizes and seeds of one arch at one budget.

        Raises:
            UserError: a budget that is too small for a size.
        """
        for size in self._study.sizes_at(budget_flops, arch) or ():
            for seed in self._study.seeds_at(budget_flops, arch, size):
                yield self.run(budget_flops, arch, size, seed)

    def has(self, arch: str, size: int) -> bool:
        """Return whether there is a count of a model."""
        return (arch, size) in self._counts

    def run(self, budget_flops: int, arch: str, size: int, seed: int) -> PlannedRun:
        """Return one run, with as many whole steps as its budget pays for.

        Raises:
            UserError: these are fewer than one, or than those of warm-up and decay.
        """
        trainer, count = self._trainer, self._counts[arch, size]
        per_token = count.training_flops_per_token(self._study.convention)
        step_flops = per_token * trainer.batch_tokens
        steps = budget_flops // step_flops
        least = 1 + (trainer.warmup_steps or 0)
        if steps < least:
            needed = format_flops(round_up(least * step_flops, digits=2))
            allowed = f"{least} or more ({arch} size {size} at {format_flops(budget_flops)})"
            do = f"raise the budget to {needed} or more, lower batch_tokens, or take smaller sizes"
            raise UserError("steps", steps, allowed, do)
        spec = self.spec(arch, size, seed, steps)
        flops = per_token * spec.n_tokens
        return PlannedRun(
            run_id=run_id(spec),
            spec=spec,
            arch=arch,
            size=size,
            budget_flops=budget_flops,
            flops=flops,
            residual=(budget_flops - flops) / budget_flops,
            n_params=count.n_params,
            n_active=count.n_active,
            n_nonembed=count.n_nonembed,
            n_tokens=spec.n_tokens,
            match_residual=None,
            epochs=None,
            flops_per_token={
                name: flops
                for name, flops in count.flops_by_component.items()
                if name in (*COUNTED, OTHER)
            },
            warnings=(),
            declared=count.rests_on_declared,
            ledger=None,
        )

    def spec(self, arch: str, size: int, seed: int, steps: int) -> TrainerSpec:
        """Return what a run of so many steps is."""
        trainer, table = self._trainer, self._study.trainer_arch(arch)
        rung = trainer.rung_of(table, size)
        values = trainer.values(arch, rung, steps, seed)
        return TrainerSpec(
            command=tuple(filled(text, values) for text in trainer.command_of(table)),
            env={name: filled(text, values) for name, text in trainer.env_of(table).items()},
            code=self._code_digest,
            rung=rung,
            seq_len=trainer.seq_len,
            batch_tokens=trainer.batch_tokens,
            steps=steps,
            data=trainer.data,
            seed=seed,
        )
