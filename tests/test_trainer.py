"""The helper for trainers of one's own, in a process that isoflop's wrapper started or by hand."""

from __future__ import annotations

import ast
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isoflop import trainer

HELPER = Path(trainer.__file__)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variables of ours or of a launcher, and handlers as before."""
    for name in [name for name in os.environ if name.startswith("ISOFLOP_")] + list(trainer._RANKS):
        monkeypatch.delenv(name, raising=False)
    state = type("_State", (), {k: v for k, v in vars(trainer._State).items() if k[0] != "_"})
    monkeypatch.setattr(trainer, "_State", state)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process, as one of a run's attempt, is to write its result."""
    path = tmp_path / "reported" / "0001" / "result.json"
    path.parent.mkdir(parents=True)
    monkeypatch.setenv("ISOFLOP_RESULT", str(path))
    return path


def curve(result: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (result.parent / "curve.jsonl").read_text().splitlines()]


SCRIPT = """
import sys
import trainer
run = trainer.spec()
for step in range(run["steps"]):
    trainer.report(step=step, loss=float("nan") if step else 3, tokens=7, lr=0.5)
trainer.finish(loss=2.5, tokens=run["tokens"], n_params=11, acc=0.25)
print(run["rung"]["depth"], run["seed"], run["checkpoint_dir"])
print([name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names])
"""


def test_one_copied_file_is_all_that_a_trainer_needs(tmp_path: Path) -> None:
    shutil.copy(HELPER, tmp_path / "trainer.py")
    (tmp_path / "train.py").write_text(f"import sys; sys.path.insert(0, {str(tmp_path)!r}){SCRIPT}")
    (tmp_path / "spec.json").write_text('{"rung": {"depth": 4}, "steps": 1, "seed": 1}')
    variables = {
        **{"SPEC": str(tmp_path / "spec.json"), "SEED": "9", "STEPS": "3", "TOKENS": "96"},
        **{"RESULT": str(tmp_path / "result.json"), "CHECKPOINT_DIR": "/ü x", "ATTEMPT": "2"},
    }
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "utf8", "train.py"],
        **{"cwd": tmp_path, "capture_output": True, "text": True},
        env={f"ISOFLOP_{name}": value for name, value in variables.items()},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == ["4 9 /ü x", "['__main__', 'trainer']"]
    rows = curve(tmp_path / "result.json")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[0].keys() == {"step", "loss", "tokens", "time_s", "lr"}
    assert math.isnan(rows[1]["loss"])
    assert json.loads((tmp_path / "result.json").read_text()) == {
        **{"loss": 2.5, "tokens": 96, "n_params": 11},
        "metrics": {"acc": 0.25},
    }


def test_importing_it_imports_nothing_else_of_isoflop() -> None:
    code = "import sys, isoflop.trainer; print([m for m in sys.modules if m[:7] in NAMES])"
    code = code.replace("NAMES", "('isoflop', 'torch', 'numpy', 'pydanti')")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['isoflop', 'isoflop.trainer']"


def test_the_file_is_python_3_8() -> None:
    tree = ast.parse(HELPER.read_text(), feature_version=(3, 8))
    assert isinstance(tree.body[1], ast.ImportFrom)
    assert tree.body[1].module == "__future__"
    # Annotations are not evaluated then; what is evaluated has no types of later versions.
    aliases = [node for node in tree.body if isinstance(node, ast.AnnAssign)]
    assert aliases == []


def test_outside_of_isoflop_nothing_is_written_and_no_signal_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    assert trainer.spec() == {}
    trainer.report(step=0, loss=1.0)
    trainer.finish(loss=math.nan, tokens=3)
    assert not trainer.should_stop()
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "writes"),
    [
        ({}, True),
        ({"RANK": "0", "SLURM_PROCID": "3"}, True),
        ({"RANK": "1", "SLURM_PROCID": "0"}, False),
        ({"SLURM_PROCID": "1"}, False),
        ({"OMPI_COMM_WORLD_RANK": "2"}, False),
        ({"JAX_PROCESS_ID": "1", "SLURM_PROCID": "0"}, False),
        ({"RANK": "", "PMI_RANK": "0"}, True),
    ],
)
def test_rank_0_alone_writes(
    variables: dict[str, str], writes: bool, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    trainer.report(step=1, loss=2.0)
    trainer.finish(loss=2.0, tokens=4)
    assert sorted(path.name for path in result.parent.iterdir()) == (
        ["curve.jsonl", "result.json"] if writes else []
    )


def test_a_full_disk_costs_points_and_one_warning(
    result: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = result.parent / "curve.jsonl"
    file.symlink_to("/dev/full")
    trainer.report(step=0, loss=2.0)
    trainer.report(step=1, loss=2.0)
    assert capsys.readouterr().err.count("the curve is lost") == 1
    file.unlink()
    write = os.write
    monkeypatch.setattr(os, "write", lambda number, data: write(number, data[:9]))
    trainer.report(step=2, loss=2.0)
    monkeypatch.undo()
    monkeypatch.setenv("ISOFLOP_RESULT", str(result))
    trainer._State.cut_off = True
    trainer.report(step=3, loss=2.0)
    first, second = file.read_text().splitlines()
    assert first == '{"step": '
    assert json.loads(second)["step"] == 3
    result.parent.rename(result.parent.with_name("moved"))
    with pytest.raises(FileNotFoundError):
        trainer.finish(loss=2.0, tokens=4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "2.0"},
        {"loss": None},
        {"loss": True},
        {"loss": [2.0, 3.0]},
        {"tokens": 4.0},
        {"tokens": -4},
        {"n_params": "7"},
        {"peak_mem_bytes": 1.5},
        {"accuracy": {"mean": 1}},
    ],
)
def test_what_is_no_number_is_refused_in_one_line(wrong: dict[str, Any], result: Path) -> None:
    name = next(iter(wrong))
    with pytest.raises(TypeError, match=rf"^{name} must be (one|a whole) number, not .*$"):
        trainer.finish(**{"loss": 2.0, "tokens": 4, **wrong})
    assert list(result.parent.iterdir()) == []


def test_numbers_of_other_libraries_are_numbers(result: Path) -> None:
    import numpy as np

    trainer.finish(loss=np.float32(2.5), tokens=np.int64(2**40), acc=np.array([[0.5]])[0, 0])
    found = json.loads(result.read_text())
    assert (found["loss"], found["tokens"], found["metrics"]) == (2.5, 2**40, {"acc": 0.5})


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_run_that_diverged_says_so_from_any_rank(
    rank: str, result: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as ended:
        trainer.finish(loss=math.inf, tokens=4)
    assert ended.value.code == trainer.DIVERGED == 77
    assert json.loads(result.read_text()) == {
        **{"status": "diverged", "reason": "the final loss is inf"}
    }
    assert capsys.readouterr().err == "diverged: the final loss is inf\n"
    with pytest.raises(SystemExit) as ended:
        trainer.stop("time is up\n  now")
    assert ended.value.code == trainer.CONTINUE == 75
    assert json.loads(result.read_text()) == {"status": "stopped", "reason": "time is up now"}


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.usefixtures("result")
def test_signals_ask_for_a_stop_and_reach_who_handled_them_before(number: signal.Signals) -> None:
    received: list[int] = []
    signal.signal(number, lambda found, frame: received.append(found))
    assert not trainer.should_stop()
    assert not trainer.should_stop()
    os.kill(os.getpid(), number)
    assert trainer.should_stop()
    assert received == [number]


def test_a_thread_and_a_rank_without_signals_see_the_stop_file(
    result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_LOOK_EVERY_S", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    seen: list[bool] = []

    def look() -> None:
        seen.append(trainer.should_stop())

    for _ in range(2):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        (result.parent / trainer.STOP_FILE).touch()
    assert seen == [False, True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def branches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process is to leave its state after 3 and after 12 steps."""
    folder = tmp_path / "forks"
    folder.mkdir()
    monkeypatch.setenv("ISOFLOP_BRANCH_DIR", str(folder))
    monkeypatch.setenv("ISOFLOP_BRANCH_STEPS", "3,12")
    return folder


def test_a_state_is_left_at_the_steps_that_are_asked_for(branches: Path) -> None:
    left = []
    for step in range(20):
        with trainer.branch(step) as folder:
            if folder:
                assert not (branches / str(step)).exists()
                (folder / "deep").mkdir()
                (folder / "deep" / "state").write_text(str(step))
                left.append(step)
    assert left == [3, 12]
    assert sorted(path.name for path in branches.iterdir()) == ["12", "3"]
    assert (branches / "12" / "deep" / "state").read_text() == "12"
    # Passed again after a stop, it is there.
    with trainer.branch(3) as folder:
        assert folder is None


def test_outside_of_isoflop_no_state_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with trainer.branch(3) as folder:
        assert folder is None
    monkeypatch.setenv("ISOFLOP_BRANCH_DIR", "/nowhere")
    monkeypatch.setenv("ISOFLOP_BRANCH_STEPS", "")
    for step in (0, 3):
        with trainer.branch(step) as folder:
            assert folder is None
    with pytest.raises(TypeError, match="step must be a whole number"), trainer.branch(-1):
        pass


def _fail_after_half() -> None:
    with trainer.branch(3) as folder:
        assert folder is not None
        (folder / "half").touch()
        print(1 // 0)


def test_what_fails_while_a_state_is_saved_leaves_none(
    branches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError):
        _fail_after_half()
    assert list(branches.iterdir()) == []
    # A full disk costs the state alone.
    with trainer.branch(3) as folder:
        assert folder is not None
        raise OSError(28, "No space left on device")
    assert list(branches.iterdir()) == []
    assert "no state is left at step 3, training goes on: [Errno 28]" in capsys.readouterr().err
    # The run's folder was moved away, and is not made again.
    branches.rmdir()
    with trainer.branch(3) as folder:
        assert folder is None
    assert not branches.exists()
    assert "no state is left at step 3" in capsys.readouterr().err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_rank_0_leaves_the_state_and_the_others_parts_if_they_ask(
    rank: str, branches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    with trainer.branch(3) as folder:
        assert (folder is None) == (rank == "1")
    with trainer.branch(12, all_ranks=True) as folder:
        assert folder is not None
        (folder / rank).touch()
    names = {"0": ["12", "3"], "1": [".12.1-00000000.tmp"]}
    assert sorted(path.name for path in branches.iterdir()) == names[rank]


UNDER_TORCHRUN = """
import os, sys, time
sys.path.insert(0, os.getcwd())
import trainer
open("ready" + os.environ["RANK"], "w").close()
while not trainer.should_stop():
    time.sleep(0.05)
open("saved" + os.environ["RANK"], "w").close()
trainer.stop()
"""


@pytest.mark.slow
def test_ranks_of_torchrun_stop_by_the_signal_that_it_gets(tmp_path: Path, result: Path) -> None:
    """Its agent passes on what it handles, and turns the ranks' exit code into 1."""
    shutil.copy(HELPER, tmp_path / "trainer.py")
    (tmp_path / "train.py").write_text(UNDER_TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    agent = subprocess.Popen(
        [*command, "--nproc_per_node=2", "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGUSR2"},
        stderr=subprocess.DEVNULL,
    )
    while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)):
        assert agent.poll() is None
        time.sleep(0.1)
    agent.send_signal(signal.SIGUSR2)
    assert agent.wait() == 1
    assert all((tmp_path / f"saved{rank}").exists() for rank in (0, 1))
    assert json.loads(result.read_text())["status"] == "stopped"
