"""The family that isoflop/families/README.md teaches, taken from its text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from isoflop import families
from isoflop.families import PATHS_VARIABLE, add_family_folder, config_from_mapping, get_build
from isoflop.model import build_model, next_token_loss
from isoflop.model.flop_gate import check_family
from isoflop.model.init import initialise
from isoflop.plan.planner import make_plan
from made_studies import micro

README = Path(families.__file__).parent / "README.md"
FILES = dict(
    re.findall(
        r"^cat > (bilinear/\w+\.py) <<'END'\n(.*?)^END$",
        README.read_text(),
        flags=re.DOTALL | re.MULTILINE,
    )
)


@pytest.fixture(autouse=True)
def _bilinear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATHS_VARIABLE, "")
    (tmp_path / "bilinear").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    add_family_folder(tmp_path / "bilinear")


def test_it_has_both_files_whole() -> None:
    assert sorted(FILES) == ["bilinear/module.py", "bilinear/spec.py"]


def test_it_passes_the_gate() -> None:
    assert [check.problem for check in check_family("bilinear")] == [None, None]


def test_it_computes_what_it_says() -> None:
    layer = get_build("bilinear")(config_from_mapping("bilinear", {"hidden_width": 5}), 4)
    initialise(layer, 0)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    w, v, u = (getattr(layer, name) for name in "wvu")
    assert torch.allclose(layer(x), torch.einsum("td,df,te,ef,fg->tg", x, w, x, v, u), atol=1e-5)


def test_its_ordinary_modules_begin_as_it_says() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    named: dict[str, Any] = {}
    exec(code, named)
    layer = named["Gated"](64, 128)
    initialise(layer, 0)
    assert float(layer.gate.bias.detach().abs().max()) <= 1 / 8
    assert float(layer.up.weight.detach().std()) == pytest.approx(1 / 8, rel=0.05)
    assert layer(torch.ones(3, 64)).shape == (3, 64)


@pytest.mark.slow
@pytest.mark.parametrize("match", ["ladder", "flops_per_token"])
def test_it_is_planned_and_learns(match: str) -> None:
    plan = make_plan(micro(archs=("swiglu", "bilinear"), match=match))
    spec = next(run.spec for run in plan.runs if run.arch == "bilinear")
    model = build_model(spec)
    assert all(torch.isfinite(p).all() and p.abs().max() < 10 for p in model.parameters())
    tokens = torch.randint(2, 256, (2, 8), generator=torch.Generator().manual_seed(0))
    before = next_token_loss(model(tokens), tokens)
    before.backward()
    torch.optim.AdamW(model.parameters(), lr=3e-3).step()
    assert next_token_loss(model(tokens), tokens) < before
