"""Checks that the runs of a plan are those that its study asks for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from isoflop.errors import UserError, shown
from isoflop.numbers import format_flops
from isoflop.plan.runs import PlannedRun, steps_of_epochs
from isoflop.spec import LATER_FIELDS
from isoflop.study import Study, check_more_seeds_at


def check_runs_are_the_study(
    study: Study, runs: Sequence[PlannedRun], num_train_tokens: int | None, path: Path
) -> None:
    """Every run the study asks for is there, in order, once, and nothing else.

    Raises:
        UserError: a run is missing, out of place or another than the study asks for.
    """
    sizes: dict[tuple[int | float, str], set[int]] = {}
    found = []
    for index, run in enumerate(runs):
        target = _target(study, run, num_train_tokens)
        sizes.setdefault((target, run.arch), set()).add(run.size)
        found.append((target, run.arch, run.size, run.spec.seed))
        _check_run_is_of_the_study(study, run, f"runs[{index}]", path)
    places = [
        (target, arch, size, seed)
        for target in study.targets
        for arch in study.archs
        for size in study.sizes_at(int(target), arch) or sorted(sizes.get((target, arch), (0,)))
        for seed in study.seeds_at(int(target), arch, size)
    ]
    for (target, arch), planned in sizes.items():
        check_more_seeds_at(study, int(target), arch, sorted(planned))
    for index, (asked, there) in enumerate(itertools.zip_longest(places, found)):
        if asked != there:
            raise refusal(
                path,
                f"runs[{index}]",
                shown(_place(there)),
                f"{_place(asked)} (the study's runs in the order budget, arch, size, seed)",
            )


def _target(study: Study, run: PlannedRun, num_train_tokens: int | None) -> int | float:
    """Return the budget of a run, or in a study set by epochs those that it makes."""
    tokens_per_step = run.spec.batch_size * run.spec.seq_len
    for epochs in study.epochs:
        # A plan by epochs whose data have no known size matches none of them.
        steps = steps_of_epochs(epochs, num_train_tokens or 0, tokens_per_step)
        if run.spec.steps == steps:
            return epochs
    return run.budget_flops


def _check_run_is_of_the_study(study: Study, run: PlannedRun, where: str, path: Path) -> None:
    if run.arch not in study.archs:
        raise refusal(path, f"{where}.arch", run.arch, f"one of {', '.join(study.archs)}")
    family, overrides = study.family_and_overrides(run.arch)
    expected = {"family": family, "recipe": study.recipe_of(run.arch), **overrides}
    if study.seq_len is not None:
        expected["seq_len"] = study.seq_len
    if study.batch_size is not None:
        expected["batch_size"] = study.batch_size
    # A configuration leaves out a later field at its old meaning.
    config = {**LATER_FIELDS.get(family, {}), **run.spec.config}
    for name, value in expected.items():
        inside = config if name in config else run.spec.to_json()
        if inside.get(name) != value:
            raise refusal(
                path, f"{where}.spec.{name}", inside.get(name), f"{value!r}, as the study says"
            )
    masked = run.spec.document_mask
    if masked != study.document_mask:
        says = f"{study.document_mask}, as the study says"
        raise refusal(path, f"{where}.spec.document_mask", masked, says)
    left = run.budget_flops - run.flops
    if left and study.epochs:
        raise refusal(path, f"{where}.budget_flops", run.budget_flops, "what the run takes")
    if not 0 <= left * run.spec.steps < run.flops:
        raise refusal(
            path, f"{where}.spec.steps", run.spec.steps, "as many steps as the budget pays for"
        )


def _place(place: tuple[int | float, str, int, int] | None) -> str:
    if place is None:
        return "nothing"
    target, arch, size, seed = place
    at = f"{target:g} epochs" if isinstance(target, float) else format_flops(target)
    return f"{arch} size {size} seed {seed} at {at}" if size else f"some size of {arch} at {at}"


def refusal(path: Path, field: str, found: object, allowed: str) -> UserError:
    """Return the error for a field that is not what the rest of the plan says."""
    return UserError(
        f"{path}: {field}",
        found,
        allowed,
        "do not edit a plan by hand: change the study and plan again",
    )
