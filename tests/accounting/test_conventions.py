from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.accounting import (
    CONVENTIONS,
    Component,
    Ledger,
    causal,
    chinchilla,
    get_convention,
    model_ledger,
    paper,
    paper_head,
    six_n,
    six_n_total,
    stored_ledger,
)
from isoflop.errors import UserError
from isoflop.families import config_from_mapping, get_spec
from isoflop.plan.planner import make_plan
from isoflop.plan.runs import run_ledger
from isoflop.study import paper_study


def dense(d_model: int, n_layers: int, n_heads: int, vocab_size: int, seq_len: int) -> Ledger:
    """A GPT-2-like model: feed-forward of 4 × the width."""
    config = config_from_mapping("mlp", {"hidden_width": 4 * d_model})
    return model_ledger(
        get_spec("mlp").ledger(config, d_model, seq_len),
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        vocab_size=vocab_size,
        seq_len=seq_len,
    )


# What other projects' formulas give for four dense models, relative to all matrix products with
# full attention: (model, exact, causal, chinchilla, 6N non-embedding, 6N of all parameters with
# the embedding and the head apart).
SURVEY = [
    ((256, 8, 4, 32768, 1024), 1.132e8, 0.889, 1.447, 0.333, 1.222),
    ((512, 8, 8, 32768, 1024), 3.020e8, 0.917, 1.335, 0.500, 1.167),
    ((768, 12, 12, 50257, 1024), 8.544e8, 0.934, 1.273, 0.596, 1.139),
    ((2048, 24, 16, 50257, 2048), 9.073e9, 0.933, 1.069, 0.799, 0.935),
]


@pytest.mark.parametrize(("shape", "exact", "half", "hoffmann", "kaplan", "untied"), SURVEY)
def test_ratios_of_the_survey_of_other_projects(
    shape: tuple[int, ...],
    exact: float,
    half: float,
    hoffmann: float,
    kaplan: float,
    untied: float,
) -> None:
    ledger = dense(*shape)
    every_product = paper_head(ledger)
    assert every_product == pytest.approx(exact, rel=5e-4)
    # The survey halves T² exactly; the mask keeps T/2 more pairs, its diagonal's other half.
    assert causal(ledger) / every_product == pytest.approx(half, abs=6e-4)
    assert chinchilla(ledger) / every_product == pytest.approx(hoffmann, abs=6e-4)
    assert six_n(ledger) / every_product == pytest.approx(kaplan, abs=1e-3)
    # Our head is the embedding; the survey's models hold two such matrices.
    both = six_n_total(ledger) + 6 * ledger.num_embedding_params
    assert both / every_product == pytest.approx(untied, abs=1e-3)


def test_chinchilla_is_the_table_of_its_appendix() -> None:
    """Per sequence, forward, term by term (Hoffmann et al. 2022, appendix F)."""
    d_model, n_layers, n_heads, vocab, length = 640, 10, 10, 32000, 2048
    inner, hidden = d_model, 4 * d_model
    layer = (
        2 * 3 * length * d_model * inner  # keys, queries, values
        + 2 * length * length * inner  # logits
        + 3 * n_heads * length * length  # softmax
        + 2 * length * length * inner  # reductions
        + 2 * length * inner * d_model  # final linear
        + 2 * length * (2 * d_model * hidden)  # dense block
    )
    forward = 2 * length * vocab * d_model + n_layers * layer + 2 * length * d_model * vocab
    ledger = dense(d_model, n_layers, n_heads, vocab, length)
    assert chinchilla(ledger) * length == 3 * forward


@given(
    n_heads=st.integers(1, 8),
    head_width=st.integers(1, 64),
    n_layers=st.integers(1, 20),
    vocab=st.integers(1, 10**6),
    length=st.integers(1, 10**6),
)
def test_causal_counts_the_pairs_that_a_mask_keeps(
    n_heads: int, head_width: int, n_layers: int, vocab: int, length: int
) -> None:
    d_model = 2 * head_width * n_heads
    ledger = model_ledger(
        [], d_model=d_model, n_layers=n_layers, n_heads=n_heads, vocab_size=vocab, seq_len=length
    )
    pairs = length * (length + 1) // 2
    without = paper_head(ledger) - 3 * ledger.flops("attn_scores")
    assert (causal(ledger) - without) * length == 3 * n_layers * 2 * 2 * pairs * d_model


@given(
    st.lists(st.integers(0, 10**30), min_size=6, max_size=6),
    st.integers(0, 5),
    st.integers(1, 10**9),
)
def test_more_of_anything_never_costs_less(counts: list[int], grown: int, by: int) -> None:
    def ledger(values: list[int]) -> Ledger:
        experts, router, params, d_model, layers, vocab = values
        parts = [
            Component(
                name="experts", flops_per_token=experts, num_params=params, num_active_params=params
            ),
            Component(name="router", flops_per_token=router, num_params=0, num_active_params=0),
        ]
        return model_ledger(
            parts, d_model=2 * d_model, n_layers=layers, n_heads=1, vocab_size=vocab, seq_len=7
        )

    more = [value + by * (place == grown) for place, value in enumerate(counts)]
    for convention in CONVENTIONS.values():
        before, after = convention(ledger(counts)), convention(ledger(more))
        assert type(before) is int
        assert after >= before


def test_order_of_the_conventions_on_every_run_of_the_paper() -> None:
    for run in make_plan(paper_study((10**17, 6 * 10**18))).unique_runs:
        ledger = run_ledger(run.spec)
        assert paper(ledger) < causal(ledger) < paper_head(ledger) < chinchilla(ledger)
        assert six_n(ledger) < six_n_total(ledger)


def test_six_n_counts_what_is_held() -> None:
    ledger = dense(8, 1, 2, 11, 5)
    assert six_n_total(ledger) == 6 * ledger.num_params
    assert six_n_total(ledger) - six_n(ledger) == 6 * 8 * 11


def test_any_convention_can_be_applied_to_a_stored_row() -> None:
    for run in make_plan(paper_study((10**17,))).unique_runs:
        row: dict[str, Any] = run.row() | {"n_heads": run.spec.n_heads}
        ledger = run_ledger(run.spec)
        for convention in CONVENTIONS.values():
            assert convention(stored_ledger(row)) == convention(ledger)
        stored = stored_ledger(row)
        assert stored.num_active_params == ledger.num_active_params
        assert stored.num_nonembed_params == ledger.num_nonembed_params


def test_an_unknown_convention_is_refused_with_the_known_ones() -> None:
    assert tuple(CONVENTIONS) == ("paper", "paper+head", "causal", "chinchilla", "6n", "6n_total")
    with pytest.raises(UserError, match=r"convention = 'kaplan': must be paper or paper\+head or"):
        get_convention("kaplan")


def test_a_ledger_that_lies_about_its_length_is_caught() -> None:
    ledger = dataclasses.replace(dense(8, 1, 2, 11, 5), seq_len=7)
    with pytest.raises(UserError, match="every pair of tokens"):
        causal(ledger)
