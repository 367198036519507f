"""Nothing outside a study's folder is written or removed, whatever links are in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isoflop.cli import main
from isoflop.data.prepare import prepare
from isoflop.files import make_own_folder, refuse_links, write_json_atomic
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.weights import prune_weights
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from made_listing import listing
from made_studies import begun, micro

PLAN = make_plan(micro(archs=("mlp",), sizes=(1, 2), budgets=(2 * 10**8,), keep_weights="all"))
DONE, OTHER = PLAN.runs

LINKS = (
    "runs",
    "runs/{0}",
    "runs/{0}/ckpt",
    "runs/{0}/ckpt/{1}",
    "runs/{0}/ckpt/{1}/weights.safetensors",
    "runs/{0}/attempts",
    "runs/{0}/metrics.jsonl",
    "runs/{0}/result.json",
    "runs/{0}/lease.json",
    "runs/{0}/interpret",
    ".launch",
    ".launch/options.json",
    ".launch/code",
)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody's folder, with what isoflop would remove of its own."""
    for name in ("5/weights", "0001.json", "spec.json", "weights.safetensors", "code/x"):
        path = tmp_path / "outside" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return tmp_path / "outside"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    prepare("sotu-embedded", "byte")
    write_plan(PLAN, folder)
    begun(folder, DONE)
    return folder


def finish(study: Path) -> None:
    run = RunFolder(study, DONE.run_id)
    (attempt,) = run.attempts()
    values = {"status": "done", "status_reason": None, "loss": 1.0}
    assert run.write_result(attempt, values | {"num_steps": DONE.spec.steps})
    run.end_attempt(attempt, "done")


def invoke(*arguments: object) -> Result:
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name", LINKS)
def test_no_link_is_followed(name: str, study: Path, outside: Path) -> None:
    finish(study)
    path = study / name.format(DONE.run_id[:12], DONE.spec.steps)
    target = outside
    if path.exists():
        target = outside / "moved"
        path.rename(target)
    elif path.suffix:
        target = outside / "spec.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    before = listing(outside)
    prune_weights(study, PLAN)
    said = ""
    for arguments in (
        ("status", study),
        ("submit", study, "--cluster", "local", "--dry-run"),
        ("cancel", study, "--yes"),
        ("clean", study, "--yes"),
        ("fit", study),
    ):
        said += invoke(*arguments).output
    assert f"{path} = a symbolic link: must be of the study itself" in said.replace("\n", "")
    assert listing(outside) == before


def test_a_result_that_is_a_path_removes_nothing(study: Path, outside: Path) -> None:
    finish(study)
    path = RunFolder(study, DONE.run_id).path / "result.json"
    text = path.read_text().replace(f'"num_steps": {DONE.spec.steps}', f'"num_steps": "{outside}"')
    path.write_text(text)
    before = listing(outside), listing(study)
    prune_weights(study, PLAN)
    done = invoke("submit", study, "--cluster", "local", "--dry-run")
    assert done.exit_code == 1
    assert f"result.json: num_steps = '{outside}': must be a whole number" in done.stderr
    assert (listing(outside), listing(study)) == before


def test_the_study_itself_may_be_a_link(study: Path, tmp_path: Path) -> None:
    finish(study)
    link = tmp_path / "link"
    link.symlink_to(study)
    prune_weights(link, PLAN)
    assert not (RunFolder(study, DONE.run_id).checkpoints / "5").exists()
    done = invoke("submit", link, "--cluster", "local", "--dry-run")
    assert (done.exit_code, "1 run to send" in done.stdout) == (0, True)


def test_folders_of_figures_are_the_studys_own(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "plots").symlink_to(outside)
    with pytest.raises(ValueError, match="plots = a symbolic link"):
        make_own_folder(tmp_path / "plots")
    make_own_folder(tmp_path / "others")
    make_own_folder(tmp_path / "others")
    assert (tmp_path / "others").is_dir()


def test_links_of_sinks_are_theirs(study: Path) -> None:
    finish(study)
    run = RunFolder(study, DONE.run_id)
    write_json_atomic(run.path / "wandb" / "run-1" / "x.json", {})
    (run.path / "wandb" / "latest-run").symlink_to("run-1")
    assert run.checked()[1] is None
    refuse_links(run.path / "absent", 2)
