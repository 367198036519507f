"""What the terminal says of trunks."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from isoflop.cli import main
from isoflop.cli.plan_tables import trunk_lines
from isoflop.cli.trunk_tables import no_trunks_line, run_trunk_lines, trunk_table
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.plan.trunks import trunks_of
from isoflop.study import Variant, paper_study
from made_studies import micro

DOUBLING = (10**10, 2 * 10**10, 4 * 10**10)


def shared(**changes: Any) -> Plan:
    given = {"recipe": "micro-v3", "budgets": DOUBLING, "sizes": (2,), "archs": ("mlp", "sgatlin")}
    return make_plan(micro(**{**given, **changes}))


def printed(plan: Plan, width: int = 80) -> tuple[str, tuple[str, ...]]:
    out = Console(file=io.StringIO(), width=width)
    table, left_out = trunk_table(plan, width)
    out.print(table)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue(), left_out


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.rstrip().endswith("%")]


def test_a_plan_says_what_is_executed_and_what_is_saved() -> None:
    (line,) = trunk_lines(shared())
    assert line.startswith("trunks: 4 of 6 runs begin from a state of a longer one; ")
    assert line.endswith("9.2e10 of 1.4e11 FLOPs are executed, 34 % saved (isoflop show --trunks)")


def test_a_plan_that_could_share_and_does_not_says_so_and_one_that_cannot_does_not() -> None:
    (line,) = trunk_lines(shared(share="none"))
    assert "not shared (share = none in the study); shared, 34 %" in line
    assert no_trunks_line(shared(share="none")) == line
    for plan in (make_plan(micro()), shared(budgets=DOUBLING[:1], share="none")):
        assert trunk_lines(plan) == []
        assert "fixed number of warm-up steps" in no_trunks_line(plan)


def test_trunks_kept_of_runs_that_share_none_are_said_to_be_none() -> None:
    (line,) = trunk_lines(make_plan(micro(keep_trunks=True)))
    assert "keep_trunks = true keeps nothing" in line
    # Of one budget there is nothing to share yet, and what is kept serves a later one.
    assert trunk_lines(shared(budgets=DOUBLING[:1], keep_trunks=True)) == []


def test_forty_budgets_many_seeds_and_long_names_are_a_row_each_in_80_columns() -> None:
    names = [f"sgatlin-with-a-name-of-sixty-letters-of-which-many-are-equal-{i}" for i in "ab"]
    variants = tuple(
        Variant(arch=name, family="sgatlin", overrides={"activation": activation})
        for name, activation in zip(names, ("relu", "silu"), strict=True)
    )
    plan = shared(
        budgets=tuple(10**10 + 10**9 * i for i in range(40)),
        seeds=tuple(range(10)),
        archs=tuple(names),
        variants=variants,
        sizes=(1, 2),
        max_epochs=9.0,
    )
    assert len(plan.runs) == 40 * 10 * 4
    text, left_out = printed(plan)
    assert max(map(len, text.splitlines())) <= 80
    assert len(rows(text)) == 4
    for row in rows(text):
        assert "1e10–4.9e10 (40)" in row
        assert "–" in row.split("(40)")[1]
    assert len({row.split()[0] for row in rows(text)}) == 2
    assert set(left_out) <= {"alone", "seeds"}
    wide, left_out = printed(plan, 200)
    assert "0–9 (10)" in wide
    assert left_out == ()
    (line,) = trunk_lines(plan)
    assert line.startswith("trunks: 1560 of 1600 runs")


def test_a_batch_that_changes_with_the_budget_parts_trunks() -> None:
    plan = make_plan(paper_study((5 * 10**17, 6 * 10**17, 9 * 10**17, 10**18, 2 * 10**18)))
    batches = {
        trunk.longest.budget_flops: {run.spec.batch_size for run in trunk.runs}
        for trunk in trunks_of(plan)
    }
    assert batches
    assert all(len(sizes) == 1 for sizes in batches.values())
    assert max(run.budget_flops for t in trunks_of(plan) for run in t.runs) == 2 * 10**18


def test_labels_of_one_training_stand_together() -> None:
    twin = Variant(arch="twin", family="mlp", overrides={})
    plan = shared(archs=("mlp", "twin"), variants=(twin,))
    assert len(plan.unique_runs) == 3
    text, _ = printed(plan, 120)
    (row,) = rows(text)
    assert row.strip().startswith("mlp, twin")
    assert trunk_lines(plan)[0].startswith("trunks: 2 of 3 runs")


def test_one_run_is_shown_with_its_fork_and_with_who_leaves_it() -> None:
    plan = shared(archs=("mlp",))
    short, middle, long = plan.runs
    forks = [fork for _, fork in trunks_of(plan)[0].branches]
    text = "\n".join(run_trunk_lines(plan, middle))
    assert f"begins at step {forks[1]:,} of {middle.spec.steps:,}" in text
    assert f"the longest: {long.run_id[:12]} at 4e10" in text
    assert f"{short.run_id[:12]} at 1e10 begins from its state at step {forks[0]:,}" in text
    longest = "\n".join(run_trunk_lines(plan, long))
    assert "the longest of 3 runs" in longest
    assert longest.count("begins from its state") == 2
    assert "its state at" not in "\n".join(run_trunk_lines(plan, short))
    assert run_trunk_lines(make_plan(micro()), make_plan(micro()).runs[0]) == []


def command(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(word) for word in words], env={"COLUMNS": "80"})
    return done.exit_code, done.output


def test_show_has_the_table_of_trunks_and_filters_it(tmp_path: Path) -> None:
    write_plan(shared(), tmp_path)
    code, text = command("show", tmp_path, "--trunks", "--arch", "mlp")
    assert code == 0
    assert "forks at step" in text
    assert "sgatlin" not in text
    assert "4 of 6 runs begin" in text
    assert '`share = "none"` in the study' in text
    assert command("show", tmp_path, "--trunks", "--sort", "steps")[0] == 2
    short = read_plan(tmp_path).runs[0]
    code, text = command("show", tmp_path, short.run_id[:12])
    assert f"begins at step {short.spec.steps - int(0.2 * short.spec.steps):,}" in text


def test_planned_again_with_another_share_the_plan_is_replaced_and_no_run(tmp_path: Path) -> None:
    study = tmp_path / "s.toml"
    folder = tmp_path / "out"

    def plan(*more: str) -> tuple[int, str]:
        lines = [
            "[study]",
            'name = "s"',
            "budgets = [1e10, 2e10]",
            'archs = ["mlp"]',
            "sizes = [2]",
        ]
        study.write_text("\n".join([*lines, *more]))
        return command("plan", study, "--out", folder)

    assert plan('recipe = "micro-v3"')[0] == 0
    before = read_plan(folder)
    result = folder / "runs" / before.runs[0].run_id[:12] / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    for more, said in (("none", "not shared"), ("trunks", "1 of 2 runs begin")):
        code, text = plan('recipe = "micro-v3"', f'share = "{more}"', "keep_trunks = true")
        assert code == 0, text
        assert said in text
        after = read_plan(folder)
        assert after.study.share == more
        assert after.study.keep_trunks
        assert after.runs == before.runs
        assert result.read_text() == "{}"
    stored = (folder / "estimates.json").read_text()
    assert "gpu_hours_saved" in stored
    assert plan('recipe = "micro-v3"')[0] == 0
    assert dataclasses.asdict(read_plan(folder).study) == dataclasses.asdict(before.study)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (('recipe = "micro-v2"', 'share = "trunks"'), "fixed number of warm-up steps"),
        (('recipe = "micro-v3"', 'share = "trunk"'), "share = 'trunk'"),
        (('recipe = "micro-v3"', "keep_trunks = 1"), "keep_trunks"),
    ],
)
def test_a_study_that_cannot_share_is_one_line(
    lines: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    study = tmp_path / "s.toml"
    head = ["[study]", 'name = "s"', "budgets = [1e10]", 'archs = ["mlp"]', "sizes = [2]"]
    study.write_text("\n".join([*head, *lines]))
    code, text = command("plan", study, "--out", tmp_path / "out")
    assert code == 2
    assert message in text
    assert text.count("\n") == 1
    assert not (tmp_path / "out").exists()
