"""Models of the user's code, counted in a subprocess."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import UserError
from isoflop.files import cache_folder
from isoflop.plan.count import CountRequest, count_many

CODE = """
print("chatter")        # once for each process
from torch import nn


def build(width, depth=1, broken=False):
    if broken:
        raise OSError("no such weights")
    layers = [nn.Linear(width, width, bias=False) for _ in range(depth)]
    return nn.Sequential(nn.Embedding(50, width), *layers)


def hang():
    import subprocess, time
    subprocess.Popen(["sleep", "600"])
    time.sleep(600)


def leave():
    import os
    print("last words", flush=True)
    os._exit(9)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "my_model.py").write_text(CODE)
    # Named as a module of Python, which isoflop is not to take it for.
    (folder / "types.py").write_text("raise SystemExit\n")
    return folder


def asked(target: str = "my_model:build", **values: Any) -> CountRequest:
    return CountRequest(target=target, values=values, seq_len=6)


def counted(
    folder: Path, *requests: CountRequest, digest: str = "d", timeout_s: float = 300
) -> list[int]:
    counts = count_many(requests, folder=folder, timeout_s=timeout_s, digest=digest)
    return [count.training_flops for count in counts]


def test_all_models_are_counted_in_one_process_and_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = [asked(width=8), asked(width=8, depth=3), asked(width=16)]
    assert counted(folder, *three) == [6 * 64, 18 * 64, 6 * 256]
    (log,) = (cache_folder() / "counted").glob("*.log")
    assert log.read_text().count("chatter") == 1
    monkeypatch.setattr("subprocess.Popen", None)
    assert counted(folder, *reversed(three)) == [6 * 256, 18 * 64, 6 * 64]
    for other in ({"digest": "e"}, {"requests": asked(width=9)}):
        with pytest.raises(TypeError):
            counted(folder, other.get("requests", asked(width=8)), digest=other.get("digest", "d"))


@pytest.mark.slow
def test_what_cannot_be_counted_is_one_line_with_its_log(folder: Path) -> None:
    for request, message in (
        (
            asked(width=8, broken=True),
            r"with width=8, broken=True: must be .*OSError: no such weights",
        ),
        (asked("my_model:leave"), r"trainer.count = 'my_model:leave': .*exit code 9 \(last words"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            counted(folder, request)
        (log,) = re.findall(r"/\S+\.log", str(caught.value))
        assert "chatter" in Path(log).read_text()
    with pytest.raises(UserError, match="must be counted within 15 s"):
        counted(folder, asked("my_model:hang"), timeout_s=15)
    with pytest.raises(UserError, match="in a folder that is there"):
        counted(folder / "none", asked(width=8))
