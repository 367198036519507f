from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import golden_tables
from isoflop.accounting import (
    COMPONENT_NAMES,
    Component,
    Ledger,
    arithmetic_intensity,
    bytes_gathered_per_token,
    dense_component,
    model_ledger,
    paper,
    paper_head,
)
from isoflop.families import config_from_mapping, get_spec
from isoflop.recipe import PAPER_V1


def _golden_config(row: dict[str, str]) -> tuple[str, Any]:
    family = golden_tables.FAMILY_OF_TYPE[row["type"]]
    hidden = int(row["d_ffw"])
    if family in ("mlp", "swiglu"):
        return family, config_from_mapping(family, {"hidden_width": hidden})
    if family == "moe":
        values = {
            "num_experts": int(row["n_channels"]),
            "num_active": int(row["knn"]),
            "hidden_width": hidden,
        }
        return family, config_from_mapping(family, values)
    routed: dict[str, Any] = {
        "num_channels": int(row["n_channels"]),
        "num_neighbours": int(row["knn"]),
        "num_experts": hidden,
        "router_width": int(row["d_key"]),
    }
    if family == "sgatlin":
        routed["router"] = row["router_type"]
    return family, config_from_mapping(family, routed)


def _golden_ledger(row: dict[str, str]) -> Ledger:
    family, config = _golden_config(row)
    d_model, seq_len = int(row["d_model"]), int(row["seq_len"])
    return model_ledger(
        get_spec(family).ledger(config, d_model, seq_len),
        d_model=d_model,
        n_layers=int(row["n_layers"]),
        n_heads=d_model // int(row["d_heads"]),
        vocab_size=int(row["vocab"]),
        seq_len=seq_len,
    )


def test_every_row_of_the_official_flop_and_parameter_table() -> None:
    rows = golden_tables.rows("flops_params.csv")
    assert len(rows) == 147
    for row in rows:
        ledger = _golden_ledger(row)
        seq_len, n_layers = int(row["seq_len"]), int(row["n_layers"])
        attention = ledger.flops("attn_proj", "attn_scores") * seq_len // n_layers
        feed_forward = ledger.flops("experts", "router") * seq_len // n_layers
        assert attention == int(row["attn_flops_per_layer"]), row
        assert feed_forward == int(row["ffw_flops_per_layer"]), row
        assert paper(ledger) * seq_len == int(row["train_flops_per_seq"]), row
        assert paper(ledger) == float(row["train_flops_per_token"]), row
        assert ledger.num_params == int(row["n_params"]), row
        assert ledger.num_nonembed_params == int(row["n_params_nonembed"]), row


def test_the_ladder_gives_the_official_shapes() -> None:
    for row in golden_tables.rows("flops_params.csv"):
        if row["source"] != "slimpajama":
            continue
        size = int(row["scale"])
        family, golden = _golden_config(row)
        ours = get_spec(family).ladder(PAPER_V1, size)
        if family == "sgatlin":
            ours = dataclasses.replace(ours, router=row["router_type"])
        shape = PAPER_V1.shape(size)
        assert ours == golden
        assert (shape.d_model, shape.n_layers) == (int(row["d_model"]), int(row["n_layers"]))
        assert shape.d_model // shape.n_heads == int(row["d_heads"])


def test_tinystories_runs_of_the_paper() -> None:
    stats = golden_tables.json_value("tinystories_stats.json")
    rows = {
        row["type"]: row
        for row in golden_tables.rows("flops_params.csv")
        if row["source"] == "tinystories" and row["router_type"] in ("", "product_dense")
    }
    for kind, golden in stats.items():
        ledger = _golden_ledger(rows[kind])
        assert ledger.num_params == golden["n_params"]
        assert paper(ledger) * golden["n_tokens"] == golden["n_flops"]


def _component(name: str) -> st.SearchStrategy[Component]:
    count = st.integers(min_value=0, max_value=10**30)
    return st.builds(
        Component,
        name=st.just(name),
        flops_per_token=count,
        num_params=count,
        num_active_params=count,
        gathered_values_per_token=count,
    )


@given(st.lists(st.sampled_from(COMPONENT_NAMES).flatmap(_component), max_size=8))
def test_nothing_is_lost_in_adding_up(feed_forward: list[Component]) -> None:
    def ledger(parts: list[Component]) -> Ledger:
        return model_ledger(parts, d_model=8, n_layers=3, n_heads=2, vocab_size=11, seq_len=5)

    bare, whole = ledger([]), ledger(feed_forward)
    names = {c.name for c in feed_forward}
    # Built-in models have nothing that is none of the parts.
    expected = [n for n in COMPONENT_NAMES if n != "other" or n in names]
    assert [c.name for c in whole.components] == expected
    added = sum(c.flops_per_token for c in feed_forward)
    assert whole.flops(*COMPONENT_NAMES) - bare.flops(*COMPONENT_NAMES) == 3 * added
    assert whole.num_params - bare.num_params == 3 * sum(c.num_params for c in feed_forward)
    gathered = sum(c.gathered_values_per_token for c in feed_forward)
    assert bytes_gathered_per_token(whole, 2) == 2 * 3 * gathered


def test_counted_training_flops_are_kept_through_sums_and_multiples() -> None:
    plain = dense_component("experts", 10, 4)
    counted = dataclasses.replace(plain, counted_training_flops_per_token=25)
    assert plain.times(2).plus(plain).training_flops_per_token == 90
    assert counted.times(2).training_flops_per_token == 50
    assert plain.plus(counted).training_flops_per_token == 55
    ledger = dataclasses.replace(
        model_ledger([], d_model=8, n_layers=1, n_heads=1, vocab_size=5, seq_len=3),
        components=(counted, dense_component("head", 7, 0)),
    )
    assert ledger.training_flops("experts", "head") == 25 + 21
    assert (paper(ledger), paper_head(ledger)) == (25, 46)


def test_active_parameters_leave_out_only_unchosen_expert_rows() -> None:
    family = "sgatlin"
    config = config_from_mapping(
        family,
        {"num_channels": 3, "num_neighbours": 2, "num_experts": 16, "router_width": 5},
    )
    spec = get_spec(family)
    unchosen_rows = 2 * 3 * (16 - 2)
    assert spec.num_params(config, 8) - spec.num_active_params(config, 8) == unchosen_rows * 8


def test_a_token_gathers_both_rows_of_each_chosen_expert() -> None:
    routed = {"num_channels": 3, "num_neighbours": 2, "num_experts": 16, "router_width": 5}
    moe = {"num_experts": 4, "num_active": 2, "hidden_width": 8}
    for family, values, gathered in (
        ("sgatlin", routed, 2 * 3 * 2 * 8),
        ("peer", routed, 2 * 3 * 2 * 8),
        ("moe", moe, 0),
        ("mlp", {"hidden_width": 8}, 0),
    ):
        layer = get_spec(family).ledger(config_from_mapping(family, values), 8, 5)
        ledger = model_ledger(layer, d_model=8, n_layers=2, n_heads=2, vocab_size=11, seq_len=5)
        assert bytes_gathered_per_token(ledger, 2) == 2 * 2 * gathered
        # 2 FLOPs per gathered value: the gather's 1 FLOP per byte in bf16, half of it in fp32.
        experts = ledger.component("experts")
        assert arithmetic_intensity(experts, 2) == (1.0 if gathered else None)
        assert arithmetic_intensity(experts, 4) == (0.5 if gathered else None)
        assert arithmetic_intensity(ledger.component("head"), 2) is None
