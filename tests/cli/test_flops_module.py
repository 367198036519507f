"""`isoflop flops --module`: what is printed of a count, and what is asked for wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import isoflop
import isoflop.plan.count
from isoflop.accounting.count import Count
from isoflop.cli.flops import flops
from isoflop.errors import UserError
from isoflop.model.target import count_target
from made_gpt import GPT, without_attention


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subprocess is tested in tests/plan/test_count.py."""

    def count_many(requests: Any, *, folder: Path, **others: Any) -> list[Count]:
        assert others["digest"] is None
        return [count_target(r.target, r.values, r.seq_len, folder) for r in requests]

    monkeypatch.setattr(isoflop.plan.count, "count_many", count_many)


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(flops, ["--module", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def row(output: str, name: str) -> list[str]:
    (line,) = [line for line in output.splitlines() if line.split()[:1] == [name]]
    return line.split()[1:]


GPT_2 = ("made_gpt:GPT", "--set", "vocab=50", "--set", "n_layers=3", "--seq-len", "16")


def test_components_modules_and_conventions() -> None:
    output = invoke(*GPT_2).output
    assert output.startswith("made_gpt:GPT vocab=50 n_layers=3: 16 tokens, in sequences of 16")
    # Twice the forward pass is a backward pass; of 3 layers of width 8.
    assert row(output, "attn_scores")[:2] == [f"{3 * 4 * 16 * 8:,}", f"{3 * 3 * 4 * 16 * 8:,}"]
    assert row(output, "h.*.mlp.c_fc")[:3] == ["Linear", "3", f"{3 * 2 * 8 * 32:,}"]
    assert row(output, "lm_head")[:3] == ["Linear", "1", "800"]
    total = 3 * (24 * 64 + 4 * 16 * 8) + 800
    assert row(output, "total")[:2] == [f"{total:,}", f"{3 * total:,}"]
    assert row(output, "paper+head")[:2] == [f"{3 * total:,}", "1.000"]
    assert row(output, "paper")[0] == f"{3 * (total - 800):,}"
    assert "elementwise operators went through" in output


def test_json_is_the_count_and_one_convention_is_enough() -> None:
    count = Count.from_json(json.loads(invoke(*GPT_2, "--json").output))
    ids = torch.zeros(1, 16, dtype=torch.long)
    assert count == isoflop.count(GPT(vocab=50, n_layers=3), ids, targets=ids)
    output = invoke(*GPT_2, "--convention", "causal").output
    assert row(output, "causal")
    assert "chinchilla" not in output


def test_a_convention_that_the_model_does_not_show_says_why() -> None:
    output = invoke(f"made_gpt:{without_attention.__name__}").output
    assert output.startswith("made_gpt:without_attention: 10 tokens, in sequences of 5")
    assert row(output, "chinchilla")[:2] == ["-", "-"]
    assert "needs as many heads in each layer" in output
    assert row(output, "causal")[0] == row(output, "paper+head")[0] == "2,400"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("made_gpt", "--seq-len", "4"), "package:build, or hf:"),
        (("made_gpt:GTP",), "a function of made_gpt"),
        (("made_gtp:GPT",), "a module that can be imported"),
        (("made_gpt:GPT", "--seq-len", "0"), "--seq-len = 0"),
        (("made_gpt:GPT", "--set", "vocab"), "--set = 'vocab': must be NAME=VALUE"),
        (("made_gpt:GPT", "--convention", "kaplan"), "convention = 'kaplan'"),
        (("made_gpt:GPT", "mlp"), "FAMILY.STUDY = 'mlp': must be absent beside --module"),
        (("hf:none.json",), "a configuration that is there"),
    ],
)
def test_nonsense_gets_one_clear_line(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        invoke(*arguments)
    with pytest.raises(UserError, match="FAMILY.STUDY = None: must be given, or --module"):
        CliRunner().invoke(flops, [], catch_exceptions=False)
