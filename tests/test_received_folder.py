"""A study's folder from somebody else, with a family of its own: looking at it runs none of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from analysis.made_report import draw_nothing
from isoflop.cli import main
from isoflop.data.windows import open_data
from isoflop.errors import UserError
from isoflop.families import PATHS_VARIABLE, add_family_folder
from isoflop.launch.execute import execute
from isoflop.launch.local import begin, open_session
from isoflop.launch.run_folder import RunFolder
from isoflop.plan import planner
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.estimate import estimate_for, write_with_estimates
from isoflop.plan.grow import grow_plan
from isoflop.plan.planner import Plan, make_plan
from made_family import write_family
from made_listing import listing
from made_studies import Edit, micro, set_value
from made_trainer import own_study
from slurm.made_scheduler import Sent, use

PROFILE = 'name = "mine"\nhardware = "cpu2"\n'
LOOKS = (
    ["status", "STUDY"],
    ["status", "STUDY", "--json"],
    ["show", "STUDY"],
    ["show", "STUDY", "RUN"],
    ["show", "STUDY", "--hardware", "h100", "--explain"],
    ["diff", "STUDY", "STUDY"],
    ["logs", "STUDY", "RUN"],
    ["cancel", "STUDY"],
    ["clean", "STUDY", "--dry-run"],
    ["fit", "STUDY", "--out", "OUT", "--n-boot", "0"],
    ["gate", "STUDY", "STUDY", "--undecided-is", "pass"],
    ["report", "STUDY", "--out", "OUT", "--n-boot", "0"],
)
RUNS = (
    ["run", "STUDY"],
    ["submit", "STUDY", "--cluster", "PROFILE", "--dry-run"],
    ["retry", "STUDY", "--cluster", "PROFILE", "--failed", "all", "--dry-run"],
    ["extend", "STUDY", "--seeds", "1"],
    ["refine", "STUDY", "--with-code"],
    ["refine", "STUDY", "--apply"],
    ["predict", "STUDY", "--budget", "1e12", "--plan"],
    ["show", "STUDY", "--with-code"],
    ["flops", "STUDY", "--check"],
    ["calibrate", "STUDY"],
    pytest.param(["interpret", "record", "STUDY", "RUN"], marks=pytest.mark.slow),
)


def forget_families() -> None:
    """What this process imported of families from folders is as good as never imported."""
    os.environ[PATHS_VARIABLE] = ""
    for name in [name for name in sys.modules if name.startswith("isoflop_family_")]:
        del sys.modules[name]


class Received:
    """A planned study with a family in a folder, whose import leaves a mark."""

    def __init__(self, top: Path, **changes: object) -> None:
        self.folder, self.family, self.mark = top / "study", top / "bilinear", top / "imported"
        self.top = top
        write_family(self.family)
        for name in ("spec.py", "module.py"):
            path = self.family / name
            path.write_text(f"open({str(self.mark)!r}, 'w').close()\n{path.read_text()}")
        values = {"archs": ("mlp", "bilinear"), "sizes": (1, 2, 3)} | changes
        self.plan: Plan = make_plan(micro(family_paths=(str(self.family),), **values))
        write_with_estimates(self.plan, estimate_for(self.plan, self.folder), self.folder)
        (top / "mine.toml").write_text(PROFILE)
        sent = Sent(self.folder, self.plan)
        for index in range(5):
            sent.result(index)
        sent.attempt(5, "failed: ValueError: x")
        self.forget()

    def forget(self) -> None:
        forget_families()
        self.mark.unlink(missing_ok=True)

    def edit(self, edit: Edit) -> None:
        path = self.folder / "plan.json"
        values = json.loads(path.read_text())
        edit(values)
        path.write_text(json.dumps(values))

    def invoke(self, arguments: list[str]) -> Result:
        words = {
            "STUDY": str(self.folder),
            "RUN": self.plan.runs[-1].run_id[:12],
            "OUT": str(self.top / "out"),
            "PROFILE": str(self.top / "mine.toml"),
        }
        return CliRunner().invoke(main, [words.get(word, word) for word in arguments])


class Foreign(Received):
    """A study whose command and count would leave a mark; its runs hold what no run would leave."""

    def __init__(self, top: Path) -> None:
        self.folder, self.mark, self.top = top / "study", top / "executed", top
        text = f"open({str(self.mark)!r}, 'w').close()\n"
        self.plan = make_plan(own_study(top / "code", script=text))
        write_with_estimates(self.plan, estimate_for(self.plan, self.folder), self.folder)
        (top / "mine.toml").write_text(PROFILE)
        for name in ("sitecustomize.py", "model.py"):
            (self.folder / name).write_text(text)
        (top / "outside").mkdir()
        (top / "outside" / "log.txt").write_text("secret\n")
        sent = Sent(self.folder, self.plan)
        for index in range(5):
            sent.result(index)
        last = self.plan.unique_runs.index(self.plan.runs[-1])
        for index in range(5, 8):
            sent.attempt(index, "failed: \x1b[2Jx")
        sent.attempt(last, "failed: its log ends: \x1b[2Jx")
        self._fill(sent.run(5), sent.run(6), sent.run(7), sent.run(last))

    def stamps(self) -> dict[Path, int]:
        """Return when each file, folder and link was last changed; the log is too long to read."""
        return {path: path.lstat().st_ctime_ns for path in self.folder.rglob("*")}

    def _fill(
        self, fifos: RunFolder, devices: RunFolder, links: RunFolder, logs: RunFolder
    ) -> None:
        for folder in (fifos, devices, logs):
            folder.reported(1).mkdir(parents=True)
        for name in ("log.txt", "result.json", "curve.jsonl", "n" * 255):
            os.mkfifo(fifos.reported(1) / name)
            (devices.reported(1) / name).symlink_to("/dev/zero")
        links.reported(1).parent.mkdir()
        links.reported(1).symlink_to(self.top / "outside")
        fifos.trainer.symlink_to(self.top / "outside")
        deepest = logs.trainer.joinpath(*["d"] * 150)
        deepest.mkdir(parents=True)
        (deepest / "up").symlink_to(self.folder)
        os.mkfifo(logs.trainer / "fifo")
        log = logs.command_log(1)
        log.write_bytes(b"\x1b]0;owned\x07\xe2\x80\xae\n" * 20)
        # Ten gigabytes, of which nothing is on the disk.
        os.truncate(log, 10 * 2**30)


@pytest.fixture(autouse=True)
def _own_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(PATHS_VARIABLE, "")
    # The gate is a process of seconds, and has its own tests.
    monkeypatch.setattr(planner, "ensure_gated", lambda *_: None)
    draw_nothing(monkeypatch)
    use(tmp_path / "bin", monkeypatch).says("scontrol", "MaxArraySize = 1001")
    yield
    forget_families()


@pytest.fixture
def received(tmp_path: Path) -> Received:
    return Received(tmp_path)


def move_away(received: Received) -> None:
    shutil.rmtree(received.family)


def change(received: Received) -> None:
    (received.family / "more.py").write_text("")


def leave(received: Received) -> None:
    pass


@pytest.mark.parametrize("what", [leave, change, move_away])
def test_looking_imports_nothing(received: Received, what: Callable[[Received], None]) -> None:
    table = received.invoke(["show", "STUDY", "--with-code"]).output
    assert received.mark.exists()
    received.forget()
    what(received)
    before = listing(received.folder)
    for arguments in LOOKS:
        done = received.invoke(arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
    assert not received.mark.exists()
    assert os.environ[PATHS_VARIABLE] == ""
    assert listing(received.folder) == before
    # The numbers are those that the code would give.
    looked = received.invoke(["show", "STUDY", "--sort", "n_params"]).output
    for run in received.plan.runs:
        (row,) = (line for line in looked.splitlines() if run.run_id[:12] in line)
        (known,) = (line for line in table.splitlines() if run.run_id[:12] in line)
        assert known.split()[: len(row.split())] == row.split()
    assert "no estimates, which take the code of bilinear: --with-code imports it" in looked


@pytest.mark.parametrize("arguments", RUNS, ids=" ".join)
def test_code_that_was_not_planned_is_never_imported(
    received: Received, arguments: list[str]
) -> None:
    planned = received.plan.family_digests["bilinear"]
    change(received)
    before = listing(received.folder)
    done = received.invoke(arguments)
    assert done.exit_code == 2, done.output
    assert done.output.startswith("isoflop: source of family bilinear = '")
    assert f"must be the one that was planned ({planned}); restore it" in done.output
    assert done.output.count("\n") == 1
    move_away(received)
    assert "source of family bilinear = None" in received.invoke(arguments).output
    assert not received.mark.exists()
    assert listing(received.folder) == before


def test_code_that_was_planned_is_imported_where_it_runs(received: Received) -> None:
    done = received.invoke(["submit", "STUDY", "--cluster", "PROFILE", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert received.mark.exists()


def test_a_proposal_that_takes_the_code_says_so(received: Received) -> None:
    done = received.invoke(["refine", "STUDY"])
    assert done.exit_code == 2
    assert "families = bilinear: must be imported to plan more of their runs" in done.output
    plan = read_plan(received.folder)
    with pytest.raises(UserError, match="add --with-code"):
        grow_plan(plan, plan.study)
    assert not received.mark.exists()


def test_a_prediction_reads_the_table_alone(received: Received) -> None:
    before = listing(received.folder)
    done = received.invoke(["predict", "STUDY", "--budget", "1e12"])
    # The study is of a single budget; it was read as far as that.
    assert done.exit_code == 2
    assert "minima inside their grids at" in done.output
    assert not received.mark.exists()
    assert listing(received.folder) == before


def test_a_family_of_that_name_elsewhere_is_not_touched_by_looking(
    received: Received, tmp_path: Path
) -> None:
    own = write_family(tmp_path / "own" / "bilinear")
    add_family_folder(own)
    assert received.invoke(["status", "STUDY"]).exit_code == 0
    assert os.environ[PATHS_VARIABLE] == str(own)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (set_value("runs", 3, "n_params", to=7), "counts that agree"),
        (set_value("runs", 3, "n_active", to=10**9), "counts that agree"),
        (set_value("runs", 3, "n_nonembed", to=1), "counts that agree"),
        (set_value("runs", 3, "n_params", to="7"), r"plan\.json: n_params"),
        (set_value("runs", 3, "flops_per_token", "head", to=1), "counts that agree"),
        (set_value("runs", 3, "flops_per_token", "experts", to=-1), "flops_per_token.experts"),
        (set_value("runs", 3, "flops_per_token", "experts", to=2), r"runs\[3\]\.flops"),
        (lambda values: values["runs"][3]["flops_per_token"].pop("router"), "counts that agree"),
        (set_value("runs", 3, "flops", to=1), r"runs\[3\]\.flops"),
        (set_value("runs", 3, "spec", "config", "hidden_width", to=2), r"runs\[3\]\.run_id"),
        (set_value("family_digests", to={}), "family = 'bilinear': must be one of mlp|one of"),
        (set_value("study", "family_paths", to=["\0"]), "families.paths"),
    ],
)
def test_counts_that_are_only_stated_must_fit_the_rest(
    received: Received, edit: Edit, named: str
) -> None:
    received.edit(edit)
    with pytest.raises(UserError, match=named):
        read_plan(received.folder)
    assert not received.mark.exists()


def test_matched_to_a_family_from_outside_its_residuals_are_stated(tmp_path: Path) -> None:
    received = Received(
        tmp_path, archs=("bilinear", "mlp"), match="flops_per_token", tolerance=0.05
    )
    assert read_plan(received.folder).runs == received.plan.runs
    received.edit(set_value("runs", 3, "match_residual", to=0.06))
    with pytest.raises(UserError, match="with a match_residual of mlp"):
        read_plan(received.folder)
    assert not received.mark.exists()


@pytest.mark.slow
def test_a_job_checks_the_code_again(received: Received) -> None:
    session = open_session(received.folder)
    (job,) = session.jobs
    begin(received.folder, session.plan, [job.run_id])
    # Between the check and the job, as in the copy on a cluster.
    change(received)
    result = execute(job, open_data(Path(job.data_folder)))
    assert result.status == "failed"
    assert "source of family bilinear" in str(result.reason)


@pytest.mark.slow
def test_modules_in_the_current_folder_are_not_those_of_workers(tmp_path: Path) -> None:
    folder, mark = tmp_path / "study", tmp_path / "imported"
    study = micro(archs=("mlp",), sizes=(1,), budgets=(7 * 10**7,))
    write_plan(make_plan(study), folder)
    for name in ("multiprocessing.py", "torch.py", "submitit.py", "isoflop/__init__.py"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(mark)!r}, 'w').close()\n")
    # As the installed command, which does not look in the current folder itself.
    script = tmp_path / "bin" / "script.py"
    script.write_text("from isoflop.cli import main\n\nif __name__ == '__main__':\n    main()\n")
    command = [sys.executable, str(script), "run", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not mark.exists()


@pytest.fixture
def foreign(tmp_path: Path) -> Foreign:
    return Foreign(tmp_path)


def test_looking_at_a_trainers_study_runs_nothing(foreign: Foreign) -> None:
    (foreign.top / "code" / "more.py").touch()
    before = foreign.stamps()
    for arguments in LOOKS:
        done = foreign.invoke(arguments)
        # A run whose own folder is a link is damaged, which some verbs end with.
        assert done.exit_code in (0, 1), (arguments, done.output)
        assert isinstance(done.exception, SystemExit | None), (arguments, done.exception)
        assert "\x1b" not in done.output
        assert "secret" not in done.output
    assert not foreign.mark.exists()
    assert foreign.stamps() == before
    done = foreign.invoke(["refine", "STUDY"])
    (line,) = (line for line in done.output.splitlines() if not line.startswith("damaged: "))
    assert (done.exit_code, "--with-code" in line) == (2, True)
    done = foreign.invoke(
        ["retry", "STUDY", "--cluster", "PROFILE", "--failed", "all", "--dry-run"]
    )
    assert done.exit_code in (0, 2), done.exception
    assert not foreign.mark.exists()
    assert (foreign.top / "outside" / "log.txt").read_text() == "secret\n"


def test_a_plan_written_again_is_the_same(received: Received) -> None:
    before = (received.folder / "plan.json").read_bytes()
    assert not write_plan(read_plan(received.folder), received.folder)
    assert (received.folder / "plan.json").read_bytes() == before
